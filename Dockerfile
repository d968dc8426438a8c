# docker build -t gatekeeper-sidecar .
# docker run -p 8000:8000 -e GATEKEEPER_UPSTREAM_URL=http://backend:8080 -e GATEKEEPER_JWT_SECRET_FILE=… gatekeeper-sidecar

FROM python:3.13-slim AS build
RUN ["pip", "install", "--no-cache-dir", "uv==0.13.8"]
ENV UV_PROJECT_ENVIRONMENT=/opt/gatekeeper \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
WORKDIR /src
COPY . .
RUN ["uv", "sync", "--frozen", "--no-dev", "--no-editable", "--extra", "embedded", "--extra", "geo"]
# A volume takes its owner from the folder that it is first mounted over.
RUN ["install", "-d", "-o", "65532", "-g", "65532", "-m", "700", "/data"]

FROM python:3.13-slim
COPY --from=build /opt/gatekeeper /opt/gatekeeper
COPY --from=build --chown=65532:65532 /data /data
ENV PATH=/opt/gatekeeper/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEKEEPER_LISTEN=0.0.0.0:8000 \
    GATEKEEPER_OPS_LISTEN=0.0.0.0:9090 \
    GATEKEEPER_DATA_DIR=/data
VOLUME ["/data"]
EXPOSE 8000 9090
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
# Alive, not ready: a store that is down is no reason to restart this. Asked on the ops port, wherever that is; not
# through urllib, which would go through HTTP_PROXY.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; ops = http.client.HTTPConnection('127.0.0.1', int(os.environ['GATEKEEPER_OPS_LISTEN'].rpartition(':')[2]), timeout=2); ops.request('GET', '/livez'); sys.exit(ops.getresponse().status != 200)"]
ENTRYPOINT ["gatekeeper"]
CMD ["serve"]
