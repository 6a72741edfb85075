"""The distillation process as Gymnasium environments; importing this package registers `TeacherSelect-v0`.

Neither torch nor transformers is imported here: registration must stay cheap.
"""

import gymnasium as gym

if "TeacherSelect-v0" not in gym.registry:
    gym.register(
        id="TeacherSelect-v0",
        entry_point="envs.teacher_select:TeacherSelectEnv",
        vector_entry_point="envs.teacher_select:TeacherSelectVectorEnv",
    )
