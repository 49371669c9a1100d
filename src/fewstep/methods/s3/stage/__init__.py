"""The search for a plan of the model's own, and the fine solutions that it is measured against, as stages."""

from fewstep.methods.s3.stage.command import command as search
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.stage.teacher import command as teacher
from fewstep.pipeline.stage import MODEL, REFERENCE, Stage, extractor

TEACHER = Stage(
    name="teacher",
    command=teacher,
    makes="solutions",
    does="solve some noises finely, to search against",
    inputs=lambda settings, nfe: {"model": MODEL},
    reads=("search.noises", "search.teacher_nfe", "search.seed", "plans.to_zero", "sample.guidance"),
    applies=lambda settings, before: bool(settings.search.nfe),
    first=True,
)

STAGE = Stage(
    name="search",
    command=search,
    makes="plans",
    does="search a plan of {nfe} network calls",
    settings=SearchSettings,
    inputs=lambda settings, nfe: {
        "model": MODEL,
        "teacher": "teacher",
        "reference": REFERENCE,
        "extractor": extractor(settings),
    },
    reads=("plans.to_zero", "sample.guidance"),
    nfe=lambda settings: settings.search.nfe,
    keeps="study",
    threads=lambda settings: settings.search.workers,
    panel="fewstep.methods.s3.stage.panel",
    record="fewstep.methods.s3.stage.record",
    first=True,
)
