"""A Flask application with Flask-JWT-Extended as its documentation sets it up for cookies: CSRF double submit, a
refresh token in a cookie of its own, and nothing that knows of Gatekeeper.

    SIGNING_KEY=… python -m gunicorn flask_recipe:app
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, jsonify, request
from flask_jwt_extended import (
    JWTManager,
    create_access_token,
    create_refresh_token,
    get_jwt_identity,
    jwt_required,
    set_access_cookies,
    set_refresh_cookies,
    unset_jwt_cookies,
)

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = os.environ["SIGNING_KEY"]
app.config["JWT_TOKEN_LOCATION"] = ["cookies"]
app.config["JWT_COOKIE_SECURE"] = False
JWTManager(app)


@app.post("/login")
def login() -> Any:
    given = request.get_json()
    if (given.get("username"), given.get("password")) != ("alice", "wonderland-1"):
        return jsonify(msg="Bad username or password"), 401
    response = jsonify(msg="login successful")
    set_access_cookies(response, create_access_token(identity="alice"))
    set_refresh_cookies(response, create_refresh_token(identity="alice"))
    return response


@app.post("/refresh")
@jwt_required(refresh=True)  # type: ignore[untyped-decorator]
def refresh() -> Any:
    response = jsonify(msg="refresh successful")
    set_access_cookies(response, create_access_token(identity=get_jwt_identity(), fresh=False))
    return response


@app.post("/logout")
def logout() -> Any:
    response = jsonify(msg="logout successful")
    unset_jwt_cookies(response)
    return response


@app.route("/protected", methods=["GET", "POST"])
@jwt_required()  # type: ignore[untyped-decorator]
def protected() -> Any:
    return jsonify(user=get_jwt_identity())
