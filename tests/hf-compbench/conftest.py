import datasets
import pytest

from hf_compbench import load_compbench


@pytest.fixture(scope="session")
def mini():
    """A small mini-CompBench: all eight kinds, 8 pairs each, 64 pixels."""
    datasets.disable_progress_bars()
    return load_compbench("mini", "test", num_pairs=8, image_size=64)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """144 pictures in folders, in the place of photos."""
    import hf_diorama

    folder = tmp_path_factory.mktemp("photos")
    for i in range(144):
        path = folder / f"class_{i % 3}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        hf_diorama.render("creatures", index=i, image_size=32)["image"].save(path)
    return folder
