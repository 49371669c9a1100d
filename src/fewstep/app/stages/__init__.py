"""The list of stages. Command, rule, keys, settings, report and MLflow runs of each follow from its line here."""

from fewstep.app.settings import ModelSettings
from fewstep.app.stages import (
    autoencoder,
    claims,
    compose,
    encode,
    evaluate,
    extractor,
    gan,
    onecall,
    plans,
    prepare,
    report,
    sample,
    stats,
    track,
    train,
    unfitted,
    zoo,
)
from fewstep.methods.aligner.stage import STAGE as ALIGN
from fewstep.methods.boundary.stage import STAGE as EDIT
from fewstep.methods.boundary.stage.fit import STAGE as BOUNDARY
from fewstep.methods.ddsm.stage import STAGE as STEPAWARE
from fewstep.methods.lfm.stage import MAPS
from fewstep.methods.lfm.stage import STAGE as LFM
from fewstep.methods.multilid.stage import STAGE as DETECT
from fewstep.methods.patchdm.stage import STAGE as ENLARGE
from fewstep.methods.rad.stage import STAGE as INPAINT
from fewstep.methods.s3.stage import STAGE as SEARCH
from fewstep.methods.s3.stage import TEACHER
from fewstep.methods.semantica.stage import PAIRS
from fewstep.methods.semantica.stage import STAGE as SEMANTICA
from fewstep.methods.tfmq.stage import STAGE as QUANTIZE
from fewstep.methods.ttur.stage import STAGE as DISTURB
from fewstep.methods.ttur.stage.rates import STAGE as TTUR
from fewstep.methods.vitgan.stage import STAGE as VITGAN
from fewstep.pipeline.stage.stages import Stages

STAGES = Stages(
    (
        prepare.STAGE,
        autoencoder.STAGE,
        autoencoder.LATENTS,
        MAPS,
        encode.STAGE,
        PAIRS,
        train.BASE,
        train.STAGE,
        zoo.STAGE,
        extractor.STAGE,
        stats.STAGE,
        unfitted.STAGE,
        plans.STAGE,
        TEACHER,
        SEARCH,
        STEPAWARE,
        ALIGN,
        compose.STAGE,
        QUANTIZE,
        gan.STAGE,
        onecall.STAGE,
        sample.STAGE,
        evaluate.STAGE,
        DETECT,
        LFM,
        SEMANTICA,
        INPAINT,
        ENLARGE,
        BOUNDARY,
        EDIT,
        DISTURB,
        TTUR,
        VITGAN,
        claims.STAGE,
        report.STAGE,
        track.STAGE,
    ),
    sections={"model": ModelSettings},
)
