"""Packaging: loose requirements here, exact versions in requirements/lock.txt."""

from setuptools import find_packages, setup

setup(
    name="ofaseg",
    version="0.1.0",
    description="Open-vocabulary image segmentation as a fairseq plug-in: image-free, text-supervised and training-free methods",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["ofaseg*", "user_tasks*", "criterions*", "data_prep*"]),
    package_data={
        "ofaseg": ["config/*.yaml", "assets/*/*", "evaluation/settings/*.json", "data/*.json"],
        "data_prep": ["class_names/*.txt", "class_names/verbatim/*.txt", "subclasses/*.json", "subclasses/README.md"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "fairseq-fixed==0.12.3.1",
        "numba>=0.60",
        "numpy",
        "pillow",
        "opencv-python>=4.8",
        "pyarrow>=15",
        "safetensors>=0.4",
        "scipy",
        "sentencepiece",
        "timm>=1.0.16",
        "tokenizers>=0.15",
        "transformers>=4.40",
        "datasets>=2.18",
        "tqdm",
        "regex",
    ],
    extras_require={
        "mm": ["mmcv-lite==2.1.0", "mmengine==0.10.7", "mmsegmentation==1.2.2", "ftfy", "regex"],
        "coco": ["pycocotools"],
        "demo": ["matplotlib"],
        "llm": ["openai"],
        "clip": ["open_clip_torch"],
        "log": ["tensorboard", "wandb"],
        "ray": ["ray[data]>=2.50"],
        "crf": ["pydensecrf"],
        "croissant": ["mlcroissant>=1.1"],  # the official checker; it needs jsonpath-rw, pure Python without a wheel
        "test": ["pytest", "pytest-xdist", "ruff"],
    },
    entry_points={
        "console_scripts": [
            "ofaseg=ofaseg.cli:main",
            "ofaseg-hydra-train=ofaseg.hydra_train:main",
        ]
    },
)
