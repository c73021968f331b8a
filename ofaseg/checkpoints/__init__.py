"""Reading and writing checkpoints: safe loading, official layouts, safetensors."""

from ofaseg.checkpoints.export import export_safetensors
from ofaseg.checkpoints.ifseg import LoadReport, load_official, load_pretrained
from ofaseg.checkpoints.restore import load_dual_encoder, load_model
from ofaseg.checkpoints.safe import load_state
from ofaseg.models.state import CheckpointError

__all__ = ["CheckpointError", "LoadReport", "export_safetensors", "load_dual_encoder", "load_model", "load_official", "load_pretrained"]
__all__ += ["load_state"]
