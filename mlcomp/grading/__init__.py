"""Grading of the exercises: generate, grade your own work, grade a class. The command is ``mlcomp-grade``.

The hidden and visible checks of an assignment are ordinary cells of its source notebook in ``solutions/``; nothing
else says what is right. To grade, the student's cells run in a process of their own (``worker``, for other people's
work inside ``sandbox``), and the checks of the *source* notebook run in the grader's process (``examiner``), where
the student's functions are stand-ins that send the arguments over and get raw values back (``wire``). A submission
can therefore patch, delete or forge whatever it likes on its side: what is compared, and with what, is out of reach.

The same path serves the self-learner (``grade``), the class (``classroom``) and nbgrader's gradebook and formgrader
(``gradebook``). Nothing here is imported by ``import mlcomp``; ``notebook`` is what the exercises import.
"""
