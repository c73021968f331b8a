"""Where the real-data pack lies that tests and benchmarks use when it is there."""

import os
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent


def data_pack() -> Optional[Path]:
    """The real-data pack: $OFASEG_DATA, or shared/data beside or inside the checkout; None when there is none."""
    candidates = [Path(os.environ["OFASEG_DATA"])] if os.environ.get("OFASEG_DATA") else []
    candidates += [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    return next((path for path in candidates if (path / "camvid").is_dir()), None)
