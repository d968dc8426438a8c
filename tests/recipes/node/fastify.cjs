// Fastify with @fastify/jwt and @fastify/cookie: the access token in the answer, the refresh token in a cookie of its
// own, each made by its own namespace of the plug-in. Nothing here knows of Gatekeeper.
const fastify = require("fastify")();

fastify.register(require("@fastify/cookie"));
fastify.register(require("@fastify/jwt"), { secret: process.env.SIGNING_KEY, sign: { expiresIn: "15m" } });
fastify.register(require("@fastify/jwt"), {
  secret: `${process.env.SIGNING_KEY}-for-refresh-tokens`,
  namespace: "refresh",
  jwtVerify: "refreshVerify",
  jwtSign: "refreshSign",
  cookie: { cookieName: "refreshToken", signed: false },
  sign: { expiresIn: "7d" },
});

const cookie = { path: "/", httpOnly: true, sameSite: "lax" };

fastify.post("/login", async (request, reply) => {
  const { username, password } = request.body;
  if (username !== "alice" || password !== "wonderland-1") return reply.code(401).send({ message: "Unauthorized" });
  reply.setCookie("refreshToken", await reply.refreshSign({ sub: username }), cookie);
  return { token: await reply.jwtSign({ sub: username, role: "user" }) };
});
fastify.post("/refresh", async (request, reply) => {
  const { sub } = await request.refreshVerify({ onlyCookie: true });
  reply.setCookie("refreshToken", await reply.refreshSign({ sub }), cookie);
  return { token: await reply.jwtSign({ sub, role: "user" }) };
});
fastify.post("/logout", async (request, reply) => {
  reply.clearCookie("refreshToken", cookie);
  return { message: "logged out" };
});
fastify.get("/me", { onRequest: (request) => request.jwtVerify() }, async (request) => ({ user: request.user.sub }));

fastify.listen({ host: "127.0.0.1", port: 0 }).then((address) => console.log(`listening on ${address}`));
