"""What the groups of settings share: how a field is written down, and that nothing but arguments fills it."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


def setting(
    default: str | tuple[()] | None,
    meaning: str,
    *,
    group: str,
    default_text: str = "none",
    example: str = "",
    alias: str | None = None,
    alias_unit: str = "",
) -> Any:
    """A field that is a setting. `source.SettingInfo` says what the arguments are; `meaning` is in Markdown."""
    info: JsonDict = {
        "group": group,
        "default_text": default_text,
        "example": example,
        "alias": alias,
        "alias_unit": alias_unit,
    }
    return Field(default=default, description=meaning, json_schema_extra=info)


class SettingsGroup(BaseSettings):
    """Some of the settings: a base of `Settings`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment is read by `load` alone, which is told which environment that is.
        return (init_settings,)
