"""Sizes and latencies of student and teachers."""

from __future__ import annotations

from agents.experiment.sizes import sizes
from distill.checks import UserError
from distill.process import Distillation
from distill.settings import RunSettings
from distill.teachers.checkpoint import ModelTeacher


def test_what_is_known_of_each_model(prepared, tiny_config, monkeypatch):
    process = Distillation(RunSettings.from_config(tiny_config()))
    student, *teachers = sizes(process)
    count = sum(p.numel() for p in process.student.model.parameters())
    assert (student["name"], student["parameters"], student["bytes"]) == ("student", count, 4 * count)
    assert [t["name"] for t in teachers] == ["film", "food", "hotel", "electronics"]
    for teacher, facts in zip(process.prepared.teachers, teachers, strict=True):
        assert facts["parameters"] == sum(p.numel() for p in teacher.load().model.parameters())
        assert facts["bytes"] == sum(p.stat().st_size for p in teacher.folder.glob("*.safetensors"))
        assert facts["ms"] > 0
        teacher.release()

    def refuse(self):
        raise UserError("gone")

    monkeypatch.setattr(ModelTeacher, "load", refuse)
    assert [t["ms"] for t in sizes(process)[1:]] == [None] * 4
