"""Tasks give the same wherever they run, and what goes wrong in another process is said in a sentence."""

import os
import sys

import pytest

from dcl_face_forgery.data_scripts.executors import run_here, run_in_processes, run_on_ray
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.tests.shared.worker_tasks import Count, Die, Refuse

TASKS = [Count(number) for number in (3, 1, 0, 2)]


def run(how, tasks, *arguments):
    steps = []
    results = list(how(tasks, steps.append, *arguments))
    return results, sum(steps)


def test_tasks_run_here_in_order():
    results, steps = run(run_here, TASKS)
    assert results == [(number, os.getpid()) for number in (3, 1, 0, 2)] and steps == 6


def test_tasks_run_in_other_processes_and_every_step_is_counted():
    results, steps = run(run_in_processes, TASKS, 2)
    assert sorted(number for number, _ in results) == [0, 1, 2, 3] and steps == 6
    assert os.getpid() not in {process for _, process in results}


def test_a_refusal_comes_back_as_it_was_said():
    with pytest.raises(InputError, match=r"^the thing is wrong: mend it\.$"):
        run(run_in_processes, [Refuse()], 2)


def test_a_killed_process_is_told_from_a_defect():
    with pytest.raises(InputError, match="fewer --num_proc"):
        run(run_in_processes, [Die(), Count(1)], 2)


@pytest.mark.slow
def test_ray_runs_the_same_tasks_and_hands_a_refusal_on():
    pytest.importorskip("ray")
    results, steps = run(run_on_ray, TASKS, None, 2)
    assert sorted(number for number, _ in results) == [0, 1, 2, 3] and steps == 6
    with pytest.raises(InputError, match=r"^the thing is wrong: mend it\.$"):
        run(run_on_ray, [Refuse()], None, 1)


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"\[cluster\]"):
        run(run_on_ray, TASKS, None, 1)
