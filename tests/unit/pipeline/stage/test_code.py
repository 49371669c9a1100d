from pathlib import Path

import fewstep
from fewstep.pipeline.stage.code import _files


def test_a_template_counts_for_the_module_of_its_name_alone() -> None:
    """What a panel says of a result must not make the result stale."""
    folder = "methods/s3/stage"
    assert (Path(fewstep.__file__).parent / folder / "panel.html.j2").exists()

    def files(*modules: str) -> set[str]:
        return {name for name, _ in _files(frozenset(modules))}

    assert files("fewstep.methods.s3.stage.command") == {f"{folder}/command.py"}
    assert files("fewstep.methods.s3.stage.panel") == {f"{folder}/panel.py", f"{folder}/panel.html.j2"}
    assert files("fewstep.pipeline.report.panel") >= {"pipeline/report/panel.macros.html.j2"}
