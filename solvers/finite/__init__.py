"""Networks of finite width: trained by autograd, at many widths, and their kernels (equations 1, 47 and 62)."""
