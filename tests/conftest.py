"""What several test files read: a small records folder."""

import os
import signal
import tempfile

import corpora
import jax
import pytest
import shape_names
import slurm_cluster
import tiny_runs
from launching import make_desk

from colajax.chaos.bucket_server import BucketServer
from colajax.data.jsonl import write_jsonl
from colajax.data.prepare import prepare
from colajax.data.tokenizer import train_sentencepiece
from colajax.stories.grammar import stories

# Of all that may be installed here, the tests run on the CPU; for a GPU, say JAX_PLATFORMS=cuda.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))

SHAPE_CHECKED = shape_names.install()

# The user's compilation cache is left alone: these processes have one together, with those that they start so
# (tiny_runs.QUICK_TO_COMPILE), and without what is compiled sooner than read.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", os.environ["COLAJAX_TESTS_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# What XLA makes of small programs is not tested, but where a module says so (pytestmark = pytest.mark.optimised).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {tiny_runs.QUICK_FLAGS}".strip()
jax.config.update("jax_disable_most_optimizations", True)

# A shell that puts the tests into the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where transformers puts the classes of an export that it loads: each test process a place of its own.
_modules = tempfile.TemporaryDirectory(prefix="hf_modules")
os.environ["HF_MODULES_CACHE"] = _modules.name

# Slurm is Debian's, not Python's: .ci/run installs it and sets COLAJAX_SLURM, by which its absence is an error.
collect_ignore = [] if slurm_cluster.installed() else ["slurm_test.py"]
if collect_ignore and os.environ.get("COLAJAX_SLURM"):
    raise pytest.UsageError("COLAJAX_SLURM is set, but there is no Slurm: apt-get install slurm-wlm munge")


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        terminalreporter.write_line("slurm_test.py was left out: no Slurm here (apt-get install slurm-wlm munge)")


@pytest.fixture(scope="module", autouse=True)
def optimisations(request):
    """On in the modules that are marked."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimised") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Stories as rows of tiny_runs.SEQUENCE_LENGTH tokens."""
    folder = tmp_path_factory.mktemp("stories")
    write_jsonl(folder / "stories.jsonl", stories(3, 200))
    tokenizer = train_sentencepiece(stories(3, 200), folder / "tokenizer.model", 500)
    out = folder / "records"
    prepare([folder / "stories.jsonl"], tokenizer.path, out, tiny_runs.SEQUENCE_LENGTH, validation_fraction=0.2)
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of texts, as users have them; only read it."""
    folder = tmp_path_factory.mktemp("corpus")
    corpora.write_corpus(folder / "a.jsonl", corpora.DOCUMENTS)
    (folder / "b.txt").write_text(corpora.LONG)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer trained on them."""
    return train_sentencepiece(corpora.DOCUMENTS, tmp_path_factory.mktemp("tokenizer") / "t.model", 350)


@pytest.fixture(scope="session")
def alone(tmp_path_factory, records):
    """The workdir of a stage 1 training in one process on one device, which others are compared with; only read it."""
    workdir = tmp_path_factory.mktemp("alone") / "vae"
    tiny_runs.train_alone("vae", workdir, records)
    return workdir


@pytest.fixture(scope="session")
def bucket_server():
    """One for all: clients keep the address that they found first."""
    server = BucketServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def server(bucket_server, tmp_path_factory):
    """A bucket server, which clients in this process and those that it starts take for Google's."""
    # No credentials of the machine that the tests run on, and none looked for in its network.
    alone = {"CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("cloudsdk")), "GCE_METADATA_ROOT": "127.0.0.1:9",
             "NO_GCE_CHECK": "true", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        for name, value in (bucket_server.environment | alone).items():
            patch.setenv(name, value)
        yield bucket_server


@pytest.fixture
def desk(tmp_path):
    """A folder to launch from: see launching.make_desk."""
    make_desk(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Each golden folder imported as a run and exported again: see exports.export_goldens."""
    from exports import export_goldens  # torch is imported by the tests that need it alone

    return export_goldens(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def baselines(tmp_path_factory, records):
    """An AR and a LLaDA model, imported as runs and exported again: see exports.export_baselines."""
    from exports import export_baselines

    return export_baselines(tmp_path_factory.mktemp("baselines"), records / "tokenizer.model")


@pytest.fixture(scope="session")
def things(tmp_path_factory, records):
    """A folder with one of everything that a command reads; only read it."""
    from command_lines import make_things  # which imports every part of the package

    return make_things(tmp_path_factory.mktemp("things"), records)
