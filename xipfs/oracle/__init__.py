"""The oracle: scenarios that a real kernel has answered, played on `xipfs.mm`.

    device     the test device: its fault handler inserts by a plan of letters
    cramfs     a file of the kernel's cramfs, mapped directly and through the page cache
    process    what a process of the probe does to memory, and the lines that it prints
    scenarios  the scenarios
    probe      a boot: targets played one after the other
    player     scenes in a small language, played on mm

Nothing in mm knows of this room; `xipfs oracle play` is its command.
"""
