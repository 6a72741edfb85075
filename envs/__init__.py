"""The distillation process as Gymnasium environments; importing this package registers `TeacherSelect-v0`.

Torch and transformers are not imported here, so that registration stays cheap.
"""

import gymnasium as gym

if "TeacherSelect-v0" not in gym.registry:
    gym.register(
        id="TeacherSelect-v0",
        entry_point="envs.teacher_select:TeacherSelectEnv",
        vector_entry_point="envs.teacher_select:TeacherSelectVectorEnv",
    )
