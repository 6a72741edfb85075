"""Knowledge distillation from several teachers: tasks, teachers, signals, losses and the student.

Imports neither gymnasium nor Stable-Baselines3; `envs` wraps what is here.
"""

__version__ = "0.2.0.dev0"
