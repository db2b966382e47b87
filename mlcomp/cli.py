"""The command ``mlcomp``: compress a model, compare compressed ones, and look for a method.

Nothing heavy is imported before it is needed: ``mlcomp --help`` answers at once.
"""

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import mlcomp
from mlcomp.terminal import as_table, one_line

_TOP = """\
Compress neural networks by the methods of the book, and keep what comes out.

  mlcomp compress smollm2 --method gptq --bits 4 --group-size 64 --out kept
  mlcomp compare kept other
  mlcomp methods pruning

Each command has --help with examples."""

_COMPRESS = """\
examples:
  mlcomp compress smollm2 --method gptq --bits 4 --group-size 64 --out kept
  mlcomp compress ./my-model --method rtn --bits 4 --group-size 64 --data text.txt --out kept
  mlcomp compress smollm2 --method sparsegpt --pattern 2:4 --layers "model.layers.0.*" --out first-block
  mlcomp compress torchvision:resnet18 --method adaround --bits 4 --data folder-of-images --out kept
  mlcomp compress convnet --method gptq --bits 3 --out kept
  mlcomp compress minilm --method exact_obs --sparsity 0.5 --no-sequential --workers 8 --out kept

All other options go to the method; `mlcomp methods NAME` lists them. A run that was stopped goes on when the same
command is given again. In the folder: the model, report.html to read, report.csv, .json and .svg."""

_COMPARE = """\
examples:
  mlcomp compare kept other
  mlcomp compare kept other --text text.txt"""

_METHODS = """\
examples:
  mlcomp methods              every method, one line each
  mlcomp methods gptq         with its options
  mlcomp methods pruning      those whose line has the word, 2.08: those of a row of the syllabus"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 2 the command or a file is not as it must be, 130 stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    options: dict[str, str] = {}
    args = argparse.Namespace()
    try:
        if words[:1] == ["compress"]:
            words, options = split_options(words)
        args = parser.parse_args(words)
        if args.command is None:
            parser.print_help()
            return 2
        return args.run(args, options)
    except KeyboardInterrupt:
        told = "the same command goes on from here" if getattr(args, "out", None) else "nothing was kept"
        print(f"\nstopped; {told}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_asset_error(error):
            raise
        print(f"mlcomp: {one_line(error)}", file=sys.stderr)
        return 2


def _is_asset_error(error: RuntimeError) -> bool:
    from mlcomp.assets.cache import AssetError

    return isinstance(error, AssetError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows examples)\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="mlcomp", description=_TOP, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mlcomp {mlcomp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    shared: dict[str, Any] = {"formatter_class": raw, "allow_abbrev": False}
    compress = commands.add_parser(
        "compress", help="compress a model and keep it", epilog=_COMPRESS, description="Compress a model.", **shared
    )
    _add_compress(compress)
    compare = commands.add_parser(
        "compare",
        help="a table of compressed models",
        epilog=_COMPARE,
        description="Compare what was kept.",
        **shared,
    )
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help="of mlcomp compress")
    compare.add_argument("--text", metavar="FILE", help="measure the perplexity on this text, now")
    compare.add_argument("--tokens", type=int, metavar="N", help="of a sequence of the text (default 256)")
    compare.set_defaults(run=_compare)
    methods = commands.add_parser(
        "methods", help="the methods and their options", epilog=_METHODS, description="Look for a method.", **shared
    )
    methods.add_argument("word", nargs="?", help="a name, a word, or a row of the syllabus")
    methods.set_defaults(run=_methods)
    return parser


# The command's own options; every other one belongs to the method.
OPTIONS: dict[str, dict[str, Any]] = {
    "--method": {"required": True, "metavar": "NAME", "help": "for instance rtn, gptq, wanda; see mlcomp methods"},
    "--out": {"metavar": "FOLDER", "help": "where the model and its report are kept: new, or of the same run"},
    "--format": {"default": "mlcomp", "metavar": "NAME", "help": "mlcomp (default); compressed-tensors, for vLLM"},
    "--rest-dtype": {"metavar": "DTYPE", "help": "float16: round in the file what is not compressed, as embeddings"},
    "--data": {
        "metavar": "PATH",
        "help": "calibration: a text file; a folder of images; an .npy or .safetensors file of inputs; "
        '"noise" (default: the reference of Python, or digits)',
    },
    "--held-out": {"metavar": "PATH", "help": "what is measured on (default: the end of the data)"},
    "--samples": {"type": int, "metavar": "N", "help": "sequences (default 16), paragraphs or images (128) to see"},
    "--tokens": {"type": int, "metavar": "N", "help": "of a sequence (default 256)"},
    "--seed": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "of the draw, and of random methods (default 0)",
    },
    "--layers": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "names, also with * and ? (default: all but the head)",
    },
    "--no-sequential": {"action": "store_true", "help": "take all inputs from the dense model"},
    "--skip-unfit": {"action": "store_true", "help": "leave layers that the options do not fit, instead of refusing"},
    "--random-weights": {"action": "store_true", "help": "try the method on the shape of the network"},
    "--device": {"metavar": "NAME", "help": "for instance cuda"},
    "--workers": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "processes that compress layers which do not wait for each other (default 1: this one alone); more "
        "than three want --no-sequential",
    },
    "--quiet": {"action": "store_true", "help": "no progress, only the result"},
}


def _add_compress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="smollm2, minilm, mobilenet_v2, convnet, mlp, byte_lm_64; a folder of transformers, or a name on its "
        "hub; torchvision:NAME, timm:NAME",
    )
    for name, settings in OPTIONS.items():
        parser.add_argument(name, **settings)
    parser.set_defaults(run=_compress)


def _compress(args: argparse.Namespace, options: dict[str, str]) -> int:
    os.environ.setdefault("MPLBACKEND", "agg")
    from mlcomp.deploy.compress_model import compress_model
    from mlcomp.workers import process_map

    with process_map(args.workers) as map, _progress(shown=not args.quiet):
        done = compress_model(
            args.model,
            method=args.method,
            out=args.out,
            format=args.format,
            rest_dtype=args.rest_dtype,
            data=args.data,
            held_out=args.held_out,
            samples=args.samples,
            tokens=args.tokens,
            seed=args.seed,
            layers=args.layers,
            sequential=not args.no_sequential,
            on_error="skip" if args.skip_unfit else "raise",
            pretrained=not args.random_weights,
            device=args.device,
            progress=not args.quiet,
            map=map,
            **options,
        )
    print(done)
    print(f"kept in {args.out}: report.html to read" if args.out else "nothing was kept: that takes --out FOLDER")
    return 0


@contextmanager
def _progress(*, shown: bool) -> Iterator[None]:
    """Let the library's log stand on the terminal meanwhile, a line for each step."""
    log, handler = logging.getLogger("mlcomp"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level
    if shown:
        log.setLevel(logging.INFO)
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


def split_options(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words of the command itself, and the method's options, name → word.

    ``--bits 4``, ``--bits=4``; ``--symmetric`` alone and ``--no-symmetric`` are yes and no.

    Raises:
        ValueError: an option of the method is given twice.
    """
    own: list[str] = []
    options: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"--[A-Za-z][\w-]*", name) or name in (*OPTIONS, "--help"):
            own.append(word)
            continue
        name = name.removeprefix("--").replace("-", "_")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        elif not equals:
            value, name = ("no", name.removeprefix("no_")) if name.startswith("no_") else ("yes", name)
        if name in options:
            raise ValueError(f"--{name.replace('_', '-')} is given twice")
        options[name] = value
    return own, options


def _compare(args: argparse.Namespace, options: dict[str, str]) -> int:
    from mlcomp.deploy.compare_models import compare_models
    from mlcomp.deploy.compress_model import size_told

    rows = compare_models(args.folders, text=args.text, tokens=args.tokens)
    head = ("folder", "model", "method", "size", "of dense", "bits/w", "covered", "quality", "worst layer")
    lines = []
    for row in rows:
        size = (size_told(row.nbytes), f"{row.nbytes / row.nbytes_before:.0%}", f"{row.bits_per_weight:.2f}")
        worst = "" if row.worst_layer is None else f"{row.worst_layer[1]:.2g} {row.worst_layer[0]}"
        lines.append((str(row.folder), row.model, row.method, *size, f"{row.covered:.0%}", row.quality, worst))
    print(as_table(head, lines, right=(3, 4, 5, 6)))
    return 0


def _methods(args: argparse.Namespace, options: dict[str, str]) -> int:
    from mlcomp.deploy.compressors import compressors, other_methods

    word = (args.word or "").lower()
    known = compressors()
    exact = known.get(word.replace("-", "_"))
    found = [exact] if exact else [c for c in known.values() if _fits(word, c.name, c.title, c.rows)]
    others = [] if exact else [line for line in other_methods() if word and _fits(word, *line)]
    if not found and not others:
        raise ValueError(f"no method's line holds {args.word!r}; without a word, `mlcomp methods` lists all")
    if found:
        print(as_table(("method", "rows", "what it does"), [(c.name, ", ".join(c.rows), c.title) for c in found]))
    for compressor in found if len(found) <= 3 else ():
        print()
        print(as_table((f"options of {compressor.name}", ""), compressor.described()))
    if others:
        print("\nfrom Python only (mlcomp.…):")
        print(
            as_table(
                ("module", "rows", "what it is"), [(name, ", ".join(rows), title) for name, title, rows in others]
            )
        )
    if not word:
        print("\n`mlcomp methods gptq` shows the options of one; a word or a row (2.08) finds all of the library.")
    return 0


def _fits(word: str, name: str, title: str, rows: Sequence[str]) -> bool:
    return word in f"{name} {name.replace('_', '-')} {title}".lower() or word in rows
