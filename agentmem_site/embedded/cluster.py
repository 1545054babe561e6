"""Creates a cluster: a complete pgdata/, or none."""

import os
import shutil
import subprocess

from agentmem_site.embedded.account import run_as
from agentmem_site.embedded.binaries import binaries
from agentmem_site.embedded.errors import DataDirectoryRefusal
from agentmem_site.embedded.files import make_folder, open_file, write
from agentmem_site.embedded.folder import MB, SUPERUSER, Folder, Say
from agentmem_site.embedded.log import failure

_NEEDED_BYTES = 200 * MB


def make_cluster(folder: Folder, lock: int, say: Say) -> None:
    """Creates it in new/ and renames it. Raises: DataDirectoryRefusal, ServerFailure."""
    free_bytes = shutil.disk_usage(folder.root).free
    if free_bytes < _NEEDED_BYTES:
        raise DataDirectoryRefusal(
            f"The disk of {folder.root} has {free_bytes // MB} MB left and a new database needs "
            f"{_NEEDED_BYTES // MB}: free some space, or set AGENTMEM_DATA_DIR elsewhere."
        )
    say(f"Creating a PostgreSQL {folder.version} database in {folder.root}")
    new, programs = folder.root / "new", binaries(folder.version)
    for ctype in ("C.UTF-8", "C"):
        # Full-text search asks the C library what a letter is. In C, every character beyond ASCII
        # is one, so that a quotation mark becomes part of the word.
        if new.exists():
            shutil.rmtree(new)
        make_folder(new, folder.account)
        write(new / "password", folder.passwords()[SUPERUSER] + "\n")
        locale = ["--locale=C", f"--lc-ctype={ctype}"]
        if folder.version >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options = ["-U", SUPERUSER, f"--pwfile={new / 'password'}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--data-checksums"]
        # initdb inherits the lock: an orphaned one must end before new/ is removed.
        initdb = run_as(
            folder.account,
            [programs / "initdb", "-D", new / "pgdata", *options, *locale],
            needs=[programs / "initdb", programs / "postgres", folder.root],
            stderr=subprocess.PIPE,
            pass_fds=[lock],
        )
        if b"invalid locale name" not in initdb.stderr:
            break
        say("This system has no locale C.UTF-8: full-text search beyond ASCII will be coarse")
    if initdb.returncode:
        shutil.rmtree(new)
        raise failure(folder.log, "initdb failed.", initdb.stderr)
    main = new / "pgdata" / "postgresql.conf"
    with open_file(main, os.O_WRONLY | os.O_APPEND) as configuration:
        configuration.write(b"\ninclude 'agentmem.conf'\n")
    write(new / "pgdata" / "pg_hba.conf", "local all all scram-sha-256\n")
    (new / "pgdata").rename(folder.pgdata)
    shutil.rmtree(new)
    root = os.open(folder.root, os.O_RDONLY)
    os.fsync(root)  # after a power failure, both the database and secrets.json are there
    os.close(root)
