"""The epoch loop: sample -> policy -> migrate. Which pages is the policy's, how is mm's.

access_log  every access in order, until the epoch takes it
sampler     which ranges to drop from the kernel's cache, so that their next access is seen
budget      how many pages may move
mover       moves pages by their ids; pins
daemon      one epoch: facts to the policy, its plan checked and carried out
"""
