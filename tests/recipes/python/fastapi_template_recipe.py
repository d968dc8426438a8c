"""The sign-in of FastAPI's full stack template: its path, its form, its token (`sub` and `exp`, nothing else), and
nothing that knows of Gatekeeper.

    SIGNING_KEY=… python -m uvicorn fastapi_template_recipe:app
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions.

import os
from datetime import UTC, datetime, timedelta
from typing import Annotated

import jwt
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from pydantic import BaseModel

_SECRET = os.environ["SIGNING_KEY"]
_USER_ID = "5f0c8e6e-3f53-4d0c-9d0f-0a4d0b6f6b5e"


class Token(BaseModel):
    access_token: str
    token_type: str = "bearer"


router = APIRouter(prefix="/api/v1")
reusable_oauth2 = OAuth2PasswordBearer(tokenUrl="/api/v1/login/access-token")


@router.post("/login/access-token")
def login_access_token(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> Token:
    if (form.username, form.password) != ("alice@example.org", "wonderland-1"):
        raise HTTPException(status_code=400, detail="Incorrect email or password")
    expires = datetime.now(UTC) + timedelta(days=8)
    return Token(access_token=jwt.encode({"exp": expires, "sub": _USER_ID}, _SECRET, algorithm="HS256"))


@router.get("/users/me")
def read_user_me(token: Annotated[str, Depends(reusable_oauth2)]) -> dict[str, str]:
    try:
        payload = jwt.decode(token, _SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError:
        raise HTTPException(status_code=403, detail="Could not validate credentials") from None
    return {"user": payload["sub"]}


app = FastAPI()
app.include_router(router)
