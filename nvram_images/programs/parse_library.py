"""Parses the whole standard library of the Python that runs it: a checksum of all syntax trees.

A program of the userland image. Run it from a mount with `python3 -ISB`: nothing but what the
image holds is imported, and nothing is written.
"""

import ast
import hashlib
import os


def main() -> None:
    """Parse, and print one line."""
    top = os.path.dirname(os.__file__)
    digest = hashlib.sha256()
    nr_files = 0
    for directory, subdirectories, names in os.walk(top):
        subdirectories.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    tree = ast.parse(file.read(), path)
                digest.update(ast.dump(tree).encode())
                nr_files += 1
    print(f"{digest.hexdigest()}  {nr_files} modules parsed")


main()
