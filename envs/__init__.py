"""The distillation process as Gymnasium environments; importing this package registers the ids of `envs.family`.

Torch and transformers are not imported here, so that registration stays cheap.
"""

import gymnasium as gym

from envs.family import FAMILY, LABELS


def _register(id: str, single: str, vector: str, kwargs: dict[str, object]) -> None:
    if id not in gym.registry:
        gym.register(id, entry_point=single, vector_entry_point=vector, kwargs=kwargs)


for _id, _kwargs in FAMILY.items():
    _register(_id, "envs.teacher_select:TeacherSelectEnv", "envs.teacher_select:TeacherSelectVectorEnv", _kwargs)
_register(LABELS, "envs.labels:LabelsEnv", "envs.labels:LabelsVectorEnv", {})
