"""nbgrader's settings for this course (see book/teaching.md): for its formgrader and its commands."""

from pathlib import Path

from mlcomp.grading.gradebook import Course, configure

configure(get_config(), Course(Path.cwd()))
