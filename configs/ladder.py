"""Ladders: families x sizes x budgets x seeds by the same tokens, batches and schedule, for tools/scaling.py.

python tools/scaling.py run --ladder quick --root DIR
  Two CPU cores, under 45 minutes with corpus, tokenizer, records, probe tasks, evaluations and the figure.

python tools/scaling.py plan --ladder paper --root gs://BUCKET/curves --records RECORDS --data TASKS \\
    --topology v5p:4x4x8
  What the paper's curves take, and the commands that train and evaluate them.

joint, mask-loss, loc, block, and the same behind paper-
  What the paper finds best among its variants (configs/ablations.py), and what it is better than.

The budgets are checkpoints of one run, whose learning rate's cosine ends at about four times the last of them, as in
the paper (1,000,000 steps; its curves end near 2,000 EFLOPs). With one compute_params for all families the same EFLOPs
are the same tokens. Cola's stage 1 is outside of them: its compute is stated apart.
"""

import ablations

from colajax.scaling.ladder import Ladder, Member

# ---- quick -----------------------------------------------------------------------------------------------------------
N = 1_290_000  # about as many parameters have the quickstart's prior and the layers of its baselines
ROWS, LENGTH = 16, 160  # the longest probe has 110 tokens, and its answer 32; whole blocks of 32
STEPS = (50, 100, 200, 400)
DATA = (f"batch_size={ROWS}", f"sequence_length={LENGTH}")
QUICK = Ladder(
    budgets=tuple(6 * N * ROWS * LENGTH * steps / 1e18 for steps in STEPS),
    seeds=(66, 67),
    shared=(
        *DATA, f"compute_params={N}", f"optimizer.decay_steps={4 * STEPS[-1]}", "eval_every=1000",
        "checkpoint_every=100",
    ),
    sizes={
        "1.3M": {
            "cola": Member(
                "configs/cola_joint.py:quickstart", stage_one=Member("configs/cola_vae.py:quickstart", DATA),
                sampling=("--guidance", "1"),  # 7, the paper's, breaks latents of a prior that has learned this little
            ),
            "ar": Member("configs/ar.py:quickstart"),
            "llada": Member("configs/llada.py:quickstart"),
        }
    },
    data=(
        ("@/corpus.jsonl", "tools/make_corpus.py --kind probes --out @/corpus.jsonl"),
        ("@/tasks", "tools/make_probes.py --out @/tasks --corpus @/corpus.jsonl --count 32"),
        ("@/tokenizer.model",
         "tools/train_tokenizer.py --input @/corpus.jsonl --out @/tokenizer.model --vocab_size 1024"),
        ("@/records",
         "tools/prepare_data.py --input @/corpus.jsonl --tokenizer @/tokenizer.model --out @/records "
         f"--sequence_length {LENGTH} --workers 2"),
    ),
    evaluation=("--prompts", "@/prompts.json"),
)  # fmt: skip

# ---- paper -----------------------------------------------------------------------------------------------------------
# 77.86, 116.78 (both in the paper's tables), 234, 467, 779, 1168, 1557 and 2001 EFLOPs.
PAPER_STEPS = (10_000, 15_000, 30_000, 60_000, 100_000, 150_000, 200_000, 257_000)
PAPER = Ladder(
    budgets=tuple(6 * 1.8e9 * 1408 * 512 * steps / 1e18 for steps in PAPER_STEPS),
    seeds=(66,),  # the paper's
    shared=("optimizer.decay_steps=1_000_000",),
    sizes={
        "1.8B": {
            # How long the paper's stage 1 is, it does not say.
            "cola": Member("configs/cola_joint.py", stage_one=Member("configs/cola_vae.py", ("total_steps=50_000",))),
            "ar": Member("configs/ar.py"),
            "llada": Member("configs/llada.py"),
        }
    },
)  # fmt: skip

# ---- orderings -------------------------------------------------------------------------------------------------------
# What the paper finds best among its ablations, the best one first, at two budgets as in its tables: at CPU size on
# three seeds, by the quick ladder's records and tasks; and at the paper's.
ORDERINGS = {
    "joint": ("joint", "fixed-vae", "from-scratch"),
    "mask-loss": ("joint", "no-mask-loss"),
    "loc": ("joint", "loc-0", "loc-2", "loc-3"),  # joint's is 1
    "block": ("joint", "block-1", "block-32"),  # joint's is 8, the quickstart's
}
PAPER_ORDERINGS = ORDERINGS | {"block": ("joint", "block-1", "block-64", "block-128")}  # joint's is 16
QUICK_ORDERING = QUICK._replace(seeds=(66, 67, 68), budgets=QUICK.budgets[2:])
PAPER_ORDERING = PAPER._replace(budgets=PAPER.budgets[:2])


def _ordering(names: tuple[str, ...], size: str, like: Ladder) -> Ladder:
    """Ladders of variants, in place of `like`'s families; size: what ablations.py has behind a name, -quickstart."""
    ((named, families),) = like.sizes.items()
    cola = families["cola"]

    def member(name: str) -> Member:
        own = f"{name}-vae{size}"
        stage_one = None if name == "from-scratch" else cola.stage_one
        if own in ablations.VARIANTS:
            stage_one = stage_one._replace(config=f"configs/ablations.py:{own}")
        return cola._replace(config=f"configs/ablations.py:{name}{size}", stage_one=stage_one)

    return like._replace(sizes={named: {name: member(name) for name in names}}, best=names[0])


# ---- all -------------------------------------------------------------------------------------------------------------
LADDERS = {
    "quick": QUICK, "paper": PAPER,
    **{name: _ordering(names, "-quickstart", QUICK_ORDERING) for name, names in ORDERINGS.items()},
    **{f"paper-{name}": _ordering(names, "", PAPER_ORDERING) for name, names in PAPER_ORDERINGS.items()},
}  # fmt: skip
