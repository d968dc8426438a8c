"""The base of the groups of settings, and the way to declare a field."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict


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
    """Declare a field that is a setting.

    `meaning` is Markdown for docs/settings.md; `source.SettingInfo` describes the other arguments.
    """
    info: JsonDict = {
        "group": group,
        "default_text": default_text,
        "example": example,
        "alias": alias,
        "alias_unit": alias_unit,
    }
    return Field(default=default, description=meaning, json_schema_extra=info)


class SettingsGroup(BaseModel):
    """A group of settings: one of the bases of `Settings`. `load` fills it from the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)
