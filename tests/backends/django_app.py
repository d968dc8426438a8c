"""A Django project in one file, with REST framework and Simple JWT as their documentation sets them up: rotated and
blacklisted refresh tokens, and nothing that knows of Gatekeeper.

    SIGNING_KEY=… DATA_DIRECTORY=… python -m gunicorn django_app:application

`ACCESS_TOKEN_SECONDS` is the life of an access token, 300 if not told. `tests.servers.django_process` runs it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
from django.conf import settings

USERS = {"alice": "wonderland-1", "bob": "builder-22"}

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY=os.environ["SIGNING_KEY"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "rest_framework",
        "rest_framework_simplejwt",
        "rest_framework_simplejwt.token_blacklist",
    ],
    MIDDLEWARE=[
        # Of two tokens a gzip is made, if the client takes it.
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
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
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    },
    SIMPLE_JWT={
        "SIGNING_KEY": os.environ["SIGNING_KEY"],
        "ACCESS_TOKEN_LIFETIME": timedelta(seconds=int(os.environ.get("ACCESS_TOKEN_SECONDS", "300"))),
        "ROTATE_REFRESH_TOKENS": True,
        "BLACKLIST_AFTER_ROTATION": True,
    },
)
django.setup()

# What follows may be imported only now.
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework_simplejwt import views  # noqa: E402


def _me(request: Any) -> Any:
    return Response({"username": request.user.get_username()})


urlpatterns = [
    path("api/auth/login", views.TokenObtainPairView.as_view()),
    path("api/auth/refresh", views.TokenRefreshView.as_view()),
    path("api/auth/logout", views.TokenBlacklistView.as_view()),
    path("api/me", api_view(["GET"])(_me)),
]


def _prepare() -> None:
    """The tables and the users; the server is forked afterwards, so that no connection may stay."""
    call_command("migrate", verbosity=0, interactive=False)
    for name, password in USERS.items():
        if not User.objects.filter(username=name).exists():
            User.objects.create_user(name, password=password)
    connection.close()


application = get_wsgi_application()
_prepare()
