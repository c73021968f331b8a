"""ofaseg: open-vocabulary image segmentation as a fairseq plug-in (`--user-dir ofaseg`)."""

import sys
from pathlib import Path

from ofaseg import compat

__version__ = "0.1.0"

compat.apply()

# a checkout: the sibling packages lie beside this one
_parent = str(Path(__file__).resolve().parent.parent)
if _parent not in sys.path:
    sys.path.append(_parent)


def _register() -> None:
    """Imports everything that registers itself with fairseq (its own import of sub-folders is skipped on a second import)."""
    import criterions.image_text_contrastive  # noqa: F401
    import criterions.mask_matching  # noqa: F401
    import criterions.masked_binary_cross_entropy  # noqa: F401
    import criterions.region_cross_entropy  # noqa: F401
    import criterions.seg_token_cross_entropy  # noqa: F401
    import criterions.vision_language_pretraining  # noqa: F401
    import ofaseg.models.clip_dense  # noqa: F401
    import ofaseg.models.freeseg  # noqa: F401
    import ofaseg.models.freeseg_prompt  # noqa: F401
    import ofaseg.models.fusioner  # noqa: F401
    import ofaseg.models.ifseg  # noqa: F401
    import ofaseg.models.simseg  # noqa: F401
    import ofaseg.optim  # noqa: F401
    import user_tasks.dense_segmentation  # noqa: F401
    import user_tasks.fusion_segmentation  # noqa: F401
    import user_tasks.image_text_pretraining  # noqa: F401
    import user_tasks.prompt_learning  # noqa: F401
    import user_tasks.seq2seq_segmentation  # noqa: F401
    import user_tasks.unified_segmentation  # noqa: F401
    import user_tasks.vision_language_pretraining  # noqa: F401


_register()
