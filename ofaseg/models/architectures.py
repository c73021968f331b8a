"""Named architectures: what differs from the defaults of a model's configuration, by name."""

from typing import Mapping

from fairseq.models import register_model_architecture


def named_config(config_class, architectures: Mapping[str, dict], name: str, options: dict):
    """The `config_class` of a named architecture, with `options` on top. Raises ValueError listing the known names."""
    if name not in architectures:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(architectures)}")
    return config_class(**(architectures[name] | options))


def register_architectures(model: str, architectures: Mapping[str, dict]) -> None:
    """Tells fairseq the architectures of a registered model: `--arch NAME` sets what the user does not set."""

    def filler(values: dict):
        def fill(args) -> None:
            for key, value in values.items():
                setattr(args, key, getattr(args, key, value))

        return fill

    for name, values in architectures.items():
        register_model_architecture(model, name)(filler(values))
