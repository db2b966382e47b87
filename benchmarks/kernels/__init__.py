"""One file an operation; each has ``cases(device)``, the shapes at which it is measured.

On a GPU the first version is the kernel. On a CPU there is no kernel (its interpreter measures nothing), and the
first version is the reference.
"""
