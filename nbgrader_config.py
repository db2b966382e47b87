"""nbgrader's settings for this course (see book/teaching.md): for `nbgrader formgrader` and its other commands."""

from pathlib import Path

from mlcomp.grading.gradebook import Course, configure

configure(get_config(), Course(Path.cwd()))
