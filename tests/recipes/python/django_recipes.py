"""A Django project with the three usual ways to JWTs, each at the paths of its documentation: Simple JWT, djoser on top
of it, and Ninja JWT. None of them knows of Gatekeeper.

    SIGNING_KEY=… DATA_DIRECTORY=… python -m gunicorn django_recipes:application
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY=os.environ["SIGNING_KEY"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "rest_framework",
        "rest_framework_simplejwt.token_blacklist",
        "djoser",
        "ninja_extra",
        "ninja_jwt",
    ],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(os.environ["DATA_DIRECTORY"]) / "django.db",
            "OPTIONS": {"timeout": 20},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    # Hashes, but none that a test has to wait for.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    USE_TZ=True,
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    },
    # djoser's documentation has the scheme JWT, Simple JWT's own default is Bearer.
    SIMPLE_JWT={"AUTH_HEADER_TYPES": ("Bearer", "JWT"), "ROTATE_REFRESH_TOKENS": True},
)
django.setup()

# What follows may be imported only now.
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.urls import include, path  # noqa: E402
from ninja_extra import NinjaExtraAPI  # noqa: E402
from ninja_jwt.authentication import JWTAuth  # noqa: E402
from ninja_jwt.controller import NinjaJWTDefaultController  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework_simplejwt import views  # noqa: E402

ninja = NinjaExtraAPI()
ninja.register_controllers(NinjaJWTDefaultController)


@ninja.get("/whoami", auth=JWTAuth())
def ninja_me(request: Any) -> dict[str, str]:
    return {"user": request.user.get_username()}


@api_view(["GET"])  # type: ignore[untyped-decorator]
def me(request: Any) -> Any:
    return Response({"user": request.user.get_username()})


urlpatterns = [
    path("api/token/", views.TokenObtainPairView.as_view()),
    path("api/token/refresh/", views.TokenRefreshView.as_view()),
    path("api/token/blacklist/", views.TokenBlacklistView.as_view()),
    path("api/me", me),
    path("auth/", include("djoser.urls")),
    path("auth/", include("djoser.urls.jwt")),
    path("api/", ninja.urls),
]


def _prepare() -> None:
    """The tables and the users; the server is forked afterwards, so that no connection may stay."""
    call_command("migrate", verbosity=0, interactive=False)
    if not User.objects.filter(username="alice").exists():
        User.objects.create_user("alice", password="wonderland-1")
    connection.close()


application = get_wsgi_application()
_prepare()
