"""What the settings of every stage are made of."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

NOT_A_RESULT: JsonDict = {"changes_results": False}
"""`json_schema_extra` of a field that cannot change a result, such as a number of workers."""

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: unknown fields are errors, numbers are never read from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def result_settings(self) -> dict[str, Any]:
        """The fields that can change a result; the others (workers, saving intervals) stay out of keys."""
        kept = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == NOT_A_RESULT:
                del kept[name]
        return kept

    def require_distinct(self, *names: str) -> None:
        """Raise ValueError where a list of one of these fields repeats a value."""
        for name in names:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: must not repeat a value, got {values}")


class OwnSeeds(Section):
    """Settings of a stage that chooses by images of its own, whose random seeds are then refused for evaluation."""

    seed: int = Field(default=0, ge=0, description="first random seed of the stage's images")


class RunSettings(BaseModel):
    """All settings of one run, a field per section; `fewstep.app.params` makes it from the list of stages."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    if TYPE_CHECKING:  # the fields are those of the list of stages

        def __getattr__(self, name: str) -> Any: ...

    def result_settings(self) -> dict[str, Any]:
        """The settings that can change a result, section by section."""
        return {name: getattr(self, name).result_settings() for name in type(self).model_fields}
