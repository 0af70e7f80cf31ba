"""The few loops that PyTorch leaves slow: C++ with a plain C interface, built at first use, optional."""
