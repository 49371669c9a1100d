import json
import math
from dataclasses import replace

import pytest

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import (
    Corrector,
    Derivative,
    Node,
    Plan,
    Raw,
    Scale,
    Step,
    load_plan,
    plan_from_json,
)
from fewstep.sampling.presets import PRESETS

VP = VPLinear()


def plan():
    return PRESETS["unipc-2"](VP, 4)


def document():
    return json.loads(json.dumps(plan().to_json()))


def node(lambda_, **fields):
    return Node(float(VP.t_of_lambda(lambda_)), lambda_, **fields)


def three_nodes():
    return (node(-4.0), node(0.0), node(3.0, eval="none"))


def test_file_round_trip(tmp_path):
    original = replace(
        plan(), provenance={"study": "a", "trial": 3}, guidance=2.0, clip=1.0, fingerprint="ab"
    )
    path = tmp_path / "plan.json"
    save_plan(original, path)
    assert load_plan(path) == original
    written = json.loads(path.read_text())
    assert written["schema"] == "fewstep.plan/2" and len(written["compiled"]["rows"]) == original.nfe
    path.write_text(json.dumps(original.to_json()))  # version 1
    assert load_plan(path) == original and load_plan(path).hash == original.hash


def test_schema_of_one_step():
    step = document()["steps"][1]
    assert step == {
        "from": 1,
        "to": 2,
        "pred": "x0",
        "eta": 0.0,
        "order": 2,
        "deriv": [{"points": [0], "scale": {"kind": "bh2"}}],
        "corr": {
            "mode": "pseudo",
            "order": 3,
            "deriv": [{"points": [2, 0], "scale": {"kind": "none"}}] * 2,
        },
    }


def test_clean_data_is_written_as_null():
    zero = PRESETS["ddim"](EDM(), 3, to_zero=True)
    written = json.loads(json.dumps(zero.to_json(), allow_nan=False))
    assert written["nodes"][-1]["lambda"] is None and written["final"]["to_zero"]
    assert plan_from_json(written) == zero


def test_identity_leaves_out_names_and_history(tmp_path):
    a = plan()
    assert replace(a, name="other", provenance={"x": 1}).hash == a.hash
    assert len(a.hash) == 64
    assert a.with_node(1, t_cond=0.3).hash != a.hash
    assert a.with_step(0, pred="eps").hash != a.hash
    assert replace(a, fingerprint="00").hash != a.hash
    # whole numbers in a hand-written file are the same plan
    written = document()
    written["nodes"][0]["t"] = 1
    assert plan_from_json(written).hash == a.hash


@pytest.mark.parametrize(
    "name, nfe", [("ddim", 5), ("unipc-3", 6), ("heun", 7), ("dpm-solver-3s", 8), ("ipndm-4", 5), ("ddpm", 3)]
)
def test_nfe_of_presets(name, nfe):
    assert PRESETS[name](VP, nfe).nfe == nfe


def test_nfe_counts_analytic_first_step_and_implicit_corrector():
    base = plan()
    assert base.with_node(0, eval="afs_zero").nfe == base.nfe - 1
    implicit = replace(base.steps[0].corr, mode="implicit")
    assert base.with_step(0, corr=implicit).nfe == base.nfe + 1


def changed(path, value):
    """The document with one field set (or deleted, for ...)."""
    result = document()
    *parents, last = path
    target = result
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return result


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            ["schema"],
            "fewstep.plan/3",
            "schema must be one of fewstep.plan/1, fewstep.plan/2; got 'fewstep.plan/3'",
        ),
        (["schema"], ..., "plan.schema must be there"),
        (["steps"], ..., "plan.steps must be there"),
        (["colour"], 1, "plan must have no field but schema, .*; got 'colour'"),
        (["nodes"], {}, "nodes must be a list"),
        (["noise_schedule"], [], "noise_schedule must be an object"),
        (["nodes", 1, "sigma"], 1.0, r"nodes\[1\] must have no field but t, lambda, .*; got 'sigma'"),
        (["nodes", 1, "t"], "0.5", r"nodes\[1\].t must be a finite number; got '0.5'"),
        (["nodes", 1, "t"], True, r"nodes\[1\].t must be a finite number"),
        (["nodes", 1, "t"], math.nan, r"nodes\[1\].t must be a finite number"),
        (["nodes", 1, "eval"], "network", "must be one of net, afs_zero, afs_mean, none; got 'network'"),
        (["nodes", 1, "eval"], "afs_zero", r"nodes\[1\].eval may be afs_zero at node 0 only"),
        (["nodes", 4, "eval"], "net", r"nodes\[4\].eval must be none"),
        (["nodes", 1, "width"], 1.5, r"nodes\[1\].width must be a whole number"),
        (["nodes", 1, "quant"], 8, r"nodes\[1\].quant must be text"),
        (["nodes", 0, "lambda"], None, r"nodes\[0\].lambda must be finite"),
        (["nodes", 2, "lambda"], -4.5, r"nodes\[2\].lambda must exceed that of nodes\[1\]"),
        (["steps", 1, "pred"], "v", "pred of step 1->2 must be one of eps, x0; got 'v'"),
        (["steps", 1, "order"], 3, r"steps\[1\].order must be 1 \+ the number of derivatives \(1\); got 3"),
        (["steps", 1, "from"], 2, r"steps\[1\] must go from an earlier node to node 2; got 2 -> 2"),
        (["steps", 1, "to"], 3, r"steps\[1\] must go from an earlier node to node 2; got 1 -> 3"),
        (["steps", 1, "deriv", 0, "points"], [1], "other than the start"),
        (["steps", 1, "deriv", 0, "points"], [3], "must be different evaluated nodes"),
        (["steps", 1, "deriv", 0, "points"], [0, 0], "must be different evaluated nodes"),
        (["steps", 1, "deriv", 0, "points"], [], "must be 1 nodes or more for derivative 1; got 0"),
        (
            ["steps", 1, "deriv", 0, "scale"],
            {"kind": "bh3"},
            "scale.kind must be one of none, bh1, bh2, linear",
        ),
        (["steps", 1, "deriv", 0, "scale"], {"kind": "linear"}, "scale.value must be a number"),
        (["steps", 1, "deriv", 0, "scale"], {"kind": "bh1", "value": 1}, "scale.value must be a number"),
        (["steps", 1, "corr", "mode"], "explicit", "corr.mode must be one of pseudo, implicit"),
        (["steps", 1, "eta"], 0.5, r"steps\[1\].eta may be positive on plain order-1 steps only"),
        (["steps", 0, "eta"], 2.0, r"steps\[0\].eta must lie in \[0, 1\]"),
        (
            ["steps", 0, "raw"],
            {"A": 1.0, "c": {"0": 1.0}},
            r"steps\[0\] must have no field but from, to, pred, raw",
        ),
        (["nfe"], 5, "nfe must agree with nodes and steps, which give 4; got 5"),
        (["final", "to_zero"], True, "final.to_zero must agree"),
        (["final", "clip"], -1.0, "final.clip must be positive"),
        (["model", "convert_at"], "there", "model.convert_at must be one of step, tau"),
        (["skip_scale"], [1.0, "a"], "skip_scale must be a finite number"),
        (["name"], "../../evil", "name must do as the name of a file: .* no slash"),
        (["name"], ".hidden", "name must do as the name of a file"),
        (["provenance"], {"seeds": 5}, "provenance.seeds must be an object; got 5"),
        (["provenance"], {"seeds": {"x": [1]}}, "provenance.seeds.x must be the first seed and the last"),
        (["provenance"], {"seeds": {"x": [1, "b"]}}, "provenance.seeds.x must be a whole number; got 'b'"),
        (["provenance"], {"conditions": {"x": 5}}, "provenance.conditions.x must be an object; got 5"),
        (["provenance"], {"conditions": {"x": {}}}, "provenance.conditions.x.sha256 must be text; got None"),
        (
            ["provenance"],
            {"conditions": {"x": {"sha256": "a", "rows": [[1]]}}},
            "provenance.conditions.x.rows must be first and last rows",
        ),
    ],
)
def test_wrong_fields_are_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        plan_from_json(changed(path, value))


def test_file_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_plan(tmp_path / "none.json")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(["nfe"], 7)))
    with pytest.raises(ConfigError, match=r"plan.json: nfe must agree"):
        load_plan(path)


def test_corrector_needs_a_node_that_is_evaluated():
    corrector = Corrector("pseudo", (Derivative((2,)),))
    with pytest.raises(ConfigError, match=r"steps\[1\].corr must be null: the last node is not evaluated"):
        Plan(VP.config(), three_nodes(), (Step(0, 1, "x0"), Step(1, 2, "x0", corr=corrector)))
    first, middle, last = three_nodes()
    corrector = Corrector("pseudo", (Derivative((1,)),))
    with pytest.raises(ConfigError, match=r"nodes\[1\].eval to be net"):
        Plan(
            VP.config(),
            (first, replace(middle, eval="none"), last),
            (Step(0, 1, "x0", corr=corrector), Step(0, 2, "x0")),
        )


def test_higher_order_cannot_reach_clean_data():
    first, middle, _ = three_nodes()
    nodes = (first, middle, Node(0.0, math.inf, eval="none"))
    second_order = Step(1, 2, "x0", (Derivative((0,)),))
    with pytest.raises(ConfigError, match=r"steps\[1\] ends at sigma = 0, so its order must be 1; got 2"):
        Plan(VP.config(), nodes, (Step(0, 1, "x0"), second_order))
    assert Plan(VP.config(), nodes, (Step(0, 1, "x0"), Step(1, 2, "eps"))).to_zero


def test_other_impossible_plans():
    first, middle, last = three_nodes()
    with pytest.raises(ConfigError, match="at least a start and an end"):
        Plan(VP.config(), (first,), ())
    with pytest.raises(ConfigError, match=r"one fewer than nodes \(2\); got 1"):
        Plan(VP.config(), three_nodes(), (Step(0, 1, "x0"),))
    with pytest.raises(ConfigError, match="starts at node 1, which must be evaluated"):
        Plan(VP.config(), (first, replace(middle, eval="none"), last), (Step(0, 1, "x0"), Step(1, 2, "x0")))
    with pytest.raises(ConfigError, match="either raw or deriv and corr"):
        both = Step(0, 1, "x0", (Derivative((0,)),), raw=Raw(1.0, ()))
        Plan(VP.config(), three_nodes(), (both, Step(1, 2, "x0")))
    with pytest.raises(ConfigError, match="must name evaluated nodes once each"):
        Plan(VP.config(), three_nodes(), (Step(0, 1, "x0", raw=Raw(1.0, ((1, 0.5),))), Step(1, 2, "x0")))
    with pytest.raises(ConfigError, match="at least 0.001"):
        close = (first, node(-3.9995), last)
        Plan(VP.config(), close, (Step(0, 1, "x0"), Step(1, 2, "x0")))


def test_raw_weights_are_keyed_by_node_numbers():
    written = PRESETS["ipndm-2"](VP, 3).to_json()
    written["steps"][1]["raw"]["c"] = {"-1": 0.5}
    with pytest.raises(ConfigError, match="keyed by node numbers"):
        plan_from_json(written)


def test_copies_with_changed_fields():
    base = plan()
    assert base.with_node(-2, width=1).nodes[3].width == 1
    assert (
        base.with_step(1, deriv=(Derivative((0,), Scale("linear", 0.1)),)).steps[1].deriv[0].scale.value
        == 0.1
    )
    assert base == plan()
