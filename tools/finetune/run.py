"""Trains an adapter, or all weights, on conversations: `python -m tools.finetune.run MODEL DATA OUT`.

`qwen-server finetune` is this module in the place of its own process. Several GPUs: `torchrun --no-python
--nproc-per-node N qwen-server finetune ...`, or `accelerate launch` with its own configuration.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from tools.finetune.options import add_arguments, read_options
from tools.process import run_work


def main() -> int:
    """Runs the process and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.finetune.run", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--model-name", help="what adapters call their base (default: MODEL)")
    arguments = parser.parse_args()
    name = arguments.model_name or arguments.model
    options = read_options(arguments, model=Path(arguments.model), model_name=name)
    warnings.simplefilter("ignore")  # the libraries' own, about each other
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def work() -> None:
        if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
            logging.getLogger().setLevel(logging.ERROR)
        # What the trained layout lacks (NTK, LogN) does not matter here: samples end at the trained length.
        logging.getLogger("tools.convert.run").setLevel(logging.WARNING)
        logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
        from tools.finetune.training import finetune

        finetune(options)

    return run_work(work, out_of_memory="try --batch-size 1, a smaller --max-length, or --method qlora")


if __name__ == "__main__":
    sys.exit(main())
