"""Shows what exporting and importing cost at any size (time, MB/s, peak memory), and that the same comes back.

python tools/measure_export.py --tokenizer FILE --dir DIR [--config configs/cola_joint.py] [--dtypes bfloat16,float32]

Makes a run of random parameters under DIR, which must not exist, exports it in each precision, imports each export, and
compares every array; each command is a process of its own. For the paper's model (2.3 B parameters) DIR needs 35 GB of
disk. DIR is removed at the end.
"""

import pathlib
import shutil
import subprocess
import sys
import time

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

import jax
import numpy as np

from colajax.data.tokenizer import load_tokenizer
from colajax.errors import UserError, run_main
from colajax.hf import names, shards
from colajax.hf.import_run import make_run, write_group
from colajax.train.config import load_config
from colajax.train.stored import open_arrays

TOOLS = pathlib.Path(__file__).parent


def random_parameters(tree: dict):
    """Yields (path, layer, array) of a tree of arrays, as random numbers."""
    rng = np.random.default_rng(0)
    for keys, array in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict)):
        path = "/".join(key.key for key in keys)
        layered = "/blocks/" in f"/{path}"
        for layer in range(array.shape[0]) if layered else (None,):
            yield path, layer, rng.standard_normal(array.shape[1:] if layered else array.shape, np.float32)


def make_random_run(workdir: pathlib.Path, config, tokenizer) -> int:
    """Returns the number of parameters."""
    counts = []

    def write(partial):
        for group, tree in open_arrays(partial, write=True)[1].items():
            write_group(partial, group, random_parameters(tree))
            counts.extend(array.size for array in jax.tree.leaves(tree, is_leaf=lambda x: not isinstance(x, dict)))

    make_run(workdir, config, tokenizer, write)
    return sum(counts)


# A process counts as its own the peak of the one that it was started from, which here is a large one: this one is not.
STARTER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def measured(*command: str) -> tuple[float, float]:
    """Runs a tool; seconds and peak memory, GiB."""
    start = time.perf_counter()
    starter = [sys.executable, "-c", STARTER, sys.executable, *command]
    result = subprocess.run(starter, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise UserError(f"{command[0]}: ended with status {result.returncode}")
    return time.perf_counter() - start, int(result.stdout.split()[-1]) / 2**20


def differing(ours: pathlib.Path, theirs: pathlib.Path, dtype: str) -> list[str]:
    """Paths of the arrays of which `theirs` does not hold what `ours` holds, rounded to `dtype`."""
    found = []
    params, others = open_arrays(ours)[1], open_arrays(theirs)[1]
    for keys, array in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: not isinstance(x, dict)):
        path = "/".join(key.key for key in keys)
        for part in range(array.shape[0]) if "/blocks/" in path else (...,):
            rounded = np.asarray(array[part]).astype(shards.DTYPES[dtype]).astype(np.float32)
            if not np.array_equal(rounded, np.asarray(names.at(others, path)[part])):
                found.append(path)
                break
    return found


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--tokenizer", required=True, help="any, of at most the model's vocabulary")
    parser.add_argument("--dir", required=True, help="a folder that does not exist; removed at the end")
    parser.add_argument("--config", default=str(TOOLS.parent / "configs" / "cola_joint.py"), metavar="FILE[:VARIANT]")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    args = parser.parse_args()
    folder = pathlib.Path(args.dir)
    if folder.exists():
        raise UserError(f"{folder}: exists; name another folder")
    folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        count = make_random_run(folder / "run", load_config(args.config, []), load_tokenizer(args.tokenizer))
        print(f"{count / 1e9:.3f} B random parameters in {time.perf_counter() - start:.0f} s", flush=True)
        for dtype in args.dtypes.split(","):
            hf, back = folder / dtype, folder / f"{dtype}_run"
            command = ("export_hf.py", "--workdir", str(folder / "run"), "--out", str(hf), "--dtype", dtype)
            seconds, peak = measured(str(TOOLS / command[0]), *command[1:], "--skip_verify")
            size = sum(file.stat().st_size for file in hf.rglob("*.safetensors"))
            rate = f"{seconds:.0f} s, {size / seconds / 1e6:.0f} MB/s"
            print(f"export {dtype}: {size / 1e9:.2f} GB, {rate}, peak {peak:.2f} GiB", flush=True)
            seconds, peak = measured(
                str(TOOLS / "import_hf.py"), "--hf", str(hf), "--workdir", str(back), "--config", args.config
            )
            wrong = differing(folder / "run", back, dtype)
            equal = f"arrays that differ: {wrong or 'none'}"
            print(f"import {dtype}: {seconds:.0f} s, peak {peak:.2f} GiB; {equal}", flush=True)
            shutil.rmtree(hf)
            shutil.rmtree(back)
            if wrong:
                raise UserError(f"{dtype}: {len(wrong)} arrays came back otherwise")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_main(main)
