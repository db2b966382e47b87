"""Files and folders in a cache that others may write to, too: whose they are, and how fast they grow."""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm


@contextmanager
def growing(folder: Path, what: str) -> Iterator[None]:
    """Show how many bytes lie in ``folder`` meanwhile, if it takes more than a second."""
    done = threading.Event()

    def watch(bar: tqdm) -> None:
        while not done.wait(0.3):
            bar.n = sum(path.lstat().st_size for path in folder.rglob("*") if os.path.lexists(path))
            bar.refresh()

    with tqdm(desc=what, unit="B", unit_scale=True, delay=1, leave=False) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def ours(path: Path, *, folder: bool = False) -> bool:
    """Whether a file (or folder) is there, no link, and this user's or root's."""
    try:
        about = path.lstat()
    except OSError:
        return False
    kind = stat.S_ISDIR if folder else stat.S_ISREG
    return kind(about.st_mode) and (os.name == "nt" or about.st_uid in (os.getuid(), 0))


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, never what a link points to; what is not there is gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def own_folder(folder: Path) -> None:
    """Make the folder, in place of one that was planted there."""
    if not ours(folder, folder=True):
        remove(folder)
        folder.mkdir(parents=True)
