"""A FastAPI Users application in one file, as its documentation sets it up with SQLAlchemy, bearer tokens and JWTs, and
nothing that knows of Gatekeeper. It renews tokens too, which FastAPI Users does not.

    SIGNING_KEY=… DATA_DIRECTORY=… python -m uvicorn fastapi_users_app:app

`ACCESS_TOKEN_SECONDS` is the life of an access token, 300 if not told. `tests.servers.fastapi_users_process` runs it.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions within functions.

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin, exceptions
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from fastapi_users.schemas import BaseUser, BaseUserCreate, BaseUserUpdate
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

USER, PASSWORD = "carol@example.org", "wonderland-1"

_SECRET = os.environ["SIGNING_KEY"]
_SECONDS = int(os.environ.get("ACCESS_TOKEN_SECONDS", "300"))
_engine = create_async_engine(f"sqlite+aiosqlite:///{Path(os.environ['DATA_DIRECTORY']) / 'users.db'}")
_sessions = async_sessionmaker(_engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class User(SQLAlchemyBaseUserTableUUID, Base):
    pass


class UserRead(BaseUser[uuid.UUID]):
    pass


UserDatabase = SQLAlchemyUserDatabase[User, uuid.UUID]


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    reset_password_token_secret = _SECRET
    verification_token_secret = _SECRET


async def _database() -> AsyncIterator[UserDatabase]:
    async with _sessions() as session:
        yield _users_in(session)


def _users_in(session: AsyncSession) -> UserDatabase:
    return SQLAlchemyUserDatabase(session, User)


async def _manager(database: Annotated[UserDatabase, Depends(_database)]) -> AsyncIterator[UserManager]:
    yield UserManager(database)


def _strategy() -> JWTStrategy[User, uuid.UUID]:
    return JWTStrategy(secret=_SECRET, lifetime_seconds=_SECONDS)


bearer = AuthenticationBackend(name="jwt", transport=BearerTransport(tokenUrl="auth/login"), get_strategy=_strategy)
users = FastAPIUsers[User, uuid.UUID](_manager, [bearer])
current_user = users.current_user(active=True)


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with _engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with _sessions() as session:
        manager = UserManager(_users_in(session))
        try:
            await manager.get_by_email(USER)
        except exceptions.UserNotExists:
            await manager.create(BaseUserCreate(email=USER, password=PASSWORD))
    yield
    await _engine.dispose()


app = FastAPI(lifespan=_lifespan)
app.include_router(users.get_auth_router(bearer), prefix="/auth", tags=["auth"])
app.include_router(users.get_users_router(UserRead, BaseUserUpdate), prefix="/users", tags=["users"])


@app.post("/auth/refresh", tags=["auth"])
async def refresh(
    user: Annotated[User, Depends(current_user)],
    strategy: Annotated[JWTStrategy[User, uuid.UUID], Depends(_strategy)],
) -> Response:
    return await bearer.login(strategy, user)
