"""Linear operators on the trailing axes of arrays of any array-API namespace, and what writing one needs."""

from ssdcore._arrays import ArrayKind, Constant
from ssdcore.axes import AxisMatrix
from ssdcore.operators.base import Composition, GramOperator, LinearOperator, Scaled, Sum, Transpose
from ssdcore.operators.blur import Blur
from ssdcore.operators.functional import Functional
from ssdcore.operators.matrix import Identity, Matrix
from ssdcore.operators.resize import Resize
from ssdcore.operators.separable import AxisOperator, Separable

__all__ = [
    "ArrayKind",
    "AxisMatrix",
    "AxisOperator",
    "Blur",
    "Composition",
    "Constant",
    "Functional",
    "GramOperator",
    "Identity",
    "LinearOperator",
    "Matrix",
    "Resize",
    "Scaled",
    "Separable",
    "Sum",
    "Transpose",
]
