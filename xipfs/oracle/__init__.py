"""The oracle: scenarios that a real kernel has answered, played on `xipfs.mm`.

    device   the test device: its fault handler inserts by a plan of letters
    probe    the scenarios, and the lines that tell what they found

Nothing in mm knows of this room; `xipfs oracle play` is its command.
"""
