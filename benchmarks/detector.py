"""What the detector can tell of a model's samples, beside its null control and its baselines.

Run: detector.py SAMPLES... --data DATA --features F --reference STATS --name NAME
Writes benchmarks/results/detector_{NAME}.md. Distances are those of the same samples files to the reference.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep import process
from fewstep.files import atomic_file
from fewstep.methods.multilid.protocol import NULL
from fewstep.methods.multilid.stage.record import Detection, agreement, percent, sentences
from fewstep.methods.multilid.stage.run import run_detection
from fewstep.methods.multilid.stage.settings import DetectSettings
from fewstep.methods.multilid.taps import load_taps
from fewstep.metrics.extractor import extract
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.environment import environment
from fewstep.pipeline.samples import files_in, read_samples
from fewstep.progress import track

RESULTS = Path(__file__).parent / "results"


def main(args: argparse.Namespace) -> None:
    files = files_in(args.samples, ".npz")
    settings = DetectSettings(
        images=args.images,
        bank=args.bank,
        k=args.k,
        repeats=args.repeats,
        same_levels=not args.own_levels,
        classifiers=args.classifiers,
    )
    found = run_detection(files, args.data, args.features, settings, device="cpu", track=track)
    distances, measured = _distances(files, args)
    record = found.record
    made_by = {f"model {one['model'][:12]}, seeds {one['seeds']}" for one in record["generators"]}
    networks = ", ".join(
        f"{one['id']} (weights {one['weights_sha256'][:8]})" for one in record["protocol"]["networks"]
    )
    lines = [
        f"# The detector on {record['data']['name']}",
        "",
        f"`{shlex.join(['python', 'benchmarks/detector.py', *sys.argv[1:]])}`",
        "",
        f"Generators: {'; '.join(sorted(made_by))}, of which the first {settings.images} are told. {measured}",
        "",
        f"{settings.images} images of each class; bank of {settings.bank} other real images, k = {settings.k}; "
        f"{networks}; {settings.folds} folds, repeated {settings.repeats} times. Real images take "
        f"{record['data']['levels']} byte values; generated ones are "
        f"{'rounded to them' if settings.same_levels else 'as they are'}.",
        "",
        f"Intervals of {100 * settings.level:g} %: {record['protocol']['intervals']}.",
        "",
        *sentences(found),
        "",
        *_headline(found, distances),
        "",
        *_baselines(found, distances),
        "",
        *_null(found),
        "",
        *_matrices(found, list(distances)),
        "",
        ", ".join(f"{key} {value}" for key, value in environment().items() if isinstance(value, str)),
        "",
    ]  # fmt: skip
    with atomic_file(RESULTS / f"detector_{args.name}.md") as temporary:
        temporary.write_text("\n".join(lines))
    found.save(args.out)
    print("\n".join(lines))


def _distances(files: Sequence[Path], args: argparse.Namespace) -> tuple[dict[str, float], str]:
    """FD of each generator, all images of its file, ascending; and between what they are."""
    extractor = load_taps(args.features).pooled
    reference = load_reference(args.reference, extractor=extractor)
    found, numbers = {}, set()
    for path in track("FD", unit="file")(files):
        samples = read_samples(path)
        numbers.add(f"{len(samples.images):,}")
        features = Statistics.from_features(extract(samples.images, extractor))
        found[samples.meta["plan_name"]] = frechet(features, reference.statistics).value
    known = reference.protocol
    said = (
        f"FD: features {extractor.id}, {' or '.join(sorted(numbers))} images of each generator against "
        f"{known['n']:,} of {known['name']}, split {known['split']} (statistics {known['sha256'][:12]})."
    )
    return dict(sorted(found.items(), key=lambda item: item[1])), said


def _cell(row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{percent(row[name])} [{percent(low)}, {percent(high)}]"


def _headline(found: Detection, distances: dict[str, float]) -> list[str]:
    rows = found.headline().set_index("generator")
    head = found.record["protocol"]["headline"]
    lines = [
        f"## {head['features']} of {head['network']}, leak-free, {head['classifier']}",
        "",
        "| generator | FD | accuracy | null | minus null | AUROC (x 100) | minus null | found at 5 % false alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, fd in distances.items():
        row = rows.loc[name]
        lines.append(
            f"| {name} | {fd:.4g} | {_cell(row, 'accuracy')} | {percent(row['null_accuracy'])} | "
            f"{_cell(row, 'accuracy_minus_null')} | {_cell(row, 'auroc')} | {_cell(row, 'auroc_minus_null')} | "
            f"{_cell(row, 'tpr')} |"
        )
    said = agreement(list(rows.loc[list(distances), "auroc"]), list(distances.values()))
    return [*lines, "", *said] if said else lines


def _baselines(found: Detection, distances: dict[str, float]) -> list[str]:
    keys = ["network", "features", "protocol", "classifier"]
    lines = [
        "## Accuracy minus null control, in points, and AUROC, by features and classifier",
        "",
        f"| network | features | protocol | classifier | null | {' | '.join(distances)} |",
        f"|{'---|' * (5 + len(distances))}",
    ]
    for key, part in found.table.groupby(keys, sort=False):
        rows = part.set_index("generator")
        cells = [
            f"{_cell(rows.loc[name], 'accuracy_minus_null')}, {rows.loc[name, 'auroc']:.3f}"
            for name in distances
        ]
        lines.append(f"| {' | '.join(key)} | {percent(rows.loc[NULL, 'accuracy'])} | {' | '.join(cells)} |")
    return lines


def _null(found: Detection) -> list[str]:
    lines = [
        "## Null control: real images against real images, accuracy in %",
        "",
        "| network | features | protocol | classifier | accuracy | AUROC (x 100) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['features']} | {row['protocol']} | {row['classifier']} | "
        f"{_cell(row, 'accuracy')} | {_cell(row, 'auroc')} |"
        for row in found.table[found.table["generator"] == NULL].to_dict("records")
    ]
    return lines


def _matrices(found: Detection, names: list[str]) -> list[str]:
    told, transfer = found.record["identification"], found.record["transfer"]
    accuracy = told["accuracy"]
    low, high = accuracy["interval"]
    order = [told["classes"].index(name) for name in ["real", *names]]
    lines = [
        f"## Which generator: {percent(accuracy['value'])} % right [{percent(low)}, {percent(high)}], chance "
        f"{percent(told['chance'])} %",
        "",
        f"| true, said | {' | '.join(['real', *names])} |",
        f"|{'---|' * (len(names) + 2)}",
        *(
            f"| {told['classes'][i]} | {' | '.join(percent(told['confusion'][i][j]) for j in order)} |"
            for i in order
        ),
        "",
        "## Transfer: trained on a row, tried on a column, accuracy in %",
        "",
        f"| | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 1)}",
        *(f"| {one} | {' | '.join(percent(transfer[one][other]) for other in names)} |" for one in names),
    ]
    return lines


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--name", required=True, help="in the name of the file that is written")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and the table")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--bank", type=int, default=100)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--own-levels", action="store_true", help="leave the byte values of generated images")
    parser.add_argument("--classifiers", nargs="+", default=["logistic", "forest"])
    main(parser.parse_args())
