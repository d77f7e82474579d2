"""The rule book, one module per family of layers.

To add a rule, say for GELU:

1. Find the family: `smooth_activations` has SiLU, GELU and Mish. Rules import no torch; the layers
   and functions that they put in are in `labutils.surgery.layers`, the several operations that a
   forward may write instead in `torch_level.patterns`. Rules name both by strings.
2. Write the `Rule`: a name, whether it is exact, its error and its source, and one form per level
   at which the layer occurs (`labutils.surgery.forms`); leave out the levels that you do not need.
3. Append it to the family's ``RULES``. A new family is listed in `book`.
4. Add a test to ``tests/test_surgery_exact.py``, or to ``test_surgery_faults.py`` if it retrains.

Examples
--------
GELU as ``x * sigmoid(1.702 * x)``, in a PyTorch model and in an ONNX graph:

>>> import torch
>>> from labutils import surgery
>>> class QuickGelu(torch.nn.Module):
...     def forward(self, x):
...         return x * torch.sigmoid(1.702 * x)
>>> def write_quick_gelu(g, x, node):
...     return g.mul(x, g.op("Sigmoid", g.mul(x, 1.702)))
>>> def leave_tanh(site):
...     return surgery.Leave("tanh") if site.module.approximate == "tanh" else None
>>> quick_gelu = surgery.Rule(
...     name="gelu-by-sigmoid",
...     exact=False,
...     error="within 0.021",
...     source="Hendrycks and Gimpel 2016, section 2",
...     modules=(surgery.ModuleForm((torch.nn.GELU,), QuickGelu, check=leave_tanh),),
...     onnx=(surgery.OnnxForm.of_node("Gelu", write_quick_gelu),),
... )
>>> model = torch.nn.Sequential(torch.nn.GELU(), torch.nn.GELU("tanh"))
>>> report = surgery.replace_(model, quick_gelu)
>>> [(match.where, match.became) for match in report.matches]
[('0', 'QuickGelu')]
>>> report.left
(Left(where='1', what='GELU', why='tanh'),)
"""
