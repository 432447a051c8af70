"""`struct`: the class is part of the structure."""

import jax

from jaxem import static, struct


def test_classes_of_equal_fields_never_share_a_program():
    """Structures that compare equal collide in jit's cache once in some ten classes: wrong results, no error."""

    @struct
    class Base:
        n: int = static(default=1)

        def value(self):
            return -1.0

    run = jax.jit(lambda model, x: model.value() * x)
    classes = [struct(type(f"Derived{i}", (Base,), {"value": lambda self, i=i: float(i)})) for i in range(60)]
    assert len({jax.tree.structure(c()) for c in classes}) == 60
    assert jax.tree.structure(Base()) != jax.tree.structure(classes[0]())
    assert [float(run(c(), 1.0)) for c in classes] == list(range(60))


def test_equal_values_share_a_program():
    @struct
    class Point:
        x: float
        n: int = static(default=1)

    assert jax.tree.structure(Point(1.0)) == jax.tree.structure(Point(2.0))
    assert jax.tree.structure(Point(1.0)) != jax.tree.structure(Point(1.0, 2))
    assert jax.tree_util.tree_leaves_with_path(Point(3.0)) == [((jax.tree_util.GetAttrKey("x"),), 3.0)]
