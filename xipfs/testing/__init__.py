"""For tests of programs: a pytest plugin that gives them images, mounts, faults and crash states.

    plugin    the fixtures, which pytest finds once xipfs is installed
    mounted   a mount in a process of its own, that can be killed, and mounted again
    states    what crashes can leave while a program runs
    daemon    the process that serves it
    recording what reaches its image; faults that stop it

docs/TESTING.md shows how they are used.
"""
