"""A task and flags for FreeSeg's prompt learning at nano size, over a CLIP of random weights."""

from omegaconf import OmegaConf

from ofaseg.models.freeseg_prompt import architecture_config
from tests.toy_freeseg import vocabulary_of
from user_tasks.prompt_learning import PromptLearningConfig, PromptLearningTask

FLAGS = "--task prompt_learning --criterion region_cross_entropy --arch freeseg_prompt_nano --random-towers".split()


def make_task(data="", vocabulary=None, **options) -> PromptLearningTask:
    places = dict(data=str(data), random_towers=True, seed=1)
    return PromptLearningTask(PromptLearningConfig(**(places | options)), vocabulary or vocabulary_of())


def build(task, **options):
    """The nano model of a task."""
    return task.build_model(OmegaConf.create(vars(architecture_config("freeseg_prompt_nano", **options)) | {"_name": "freeseg_prompt"}))
