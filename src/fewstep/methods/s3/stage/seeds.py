"""The images of a search, by purpose."""

from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.pipeline.seeds import SeedBlocks


def search_seeds(settings: SearchSettings) -> SeedBlocks:
    """Seeds of the trials and their fine solutions, of validation, of the finalists, of the polish and its memory."""
    return SeedBlocks(
        settings.seed,
        {
            "trials": settings.noises,
            "validation": max(settings.noises, settings.finalist_images),
            "finalists": settings.finalist_images,
            "polish": settings.frechet_iterations * settings.frechet_images,
            "memory": settings.frechet_memory if settings.frechet_iterations else 0,
        },
    )
