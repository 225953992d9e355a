"""The COCO reader: what it reads, and what it says of files that are wrong."""
import json
import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detcore.data.coco import CocoDataset, fingerprint, trace
from detcore.data.images import read_image
from detcore.data.proposals import ProposalFile, save_proposals
from detcore.data.transforms import FilterBoxes
from detcore.errors import DataError, UsageError
from detcore.structures import Polygons

H, W = 40, 60


def picture(seed: int = 0) -> np.ndarray:
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8), (W, H))


def square(x: float, y: float, w: float, h: float, **more) -> dict:
    return dict(bbox=[x, y, w, h], area=w * h, iscrowd=0,
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]) | more


@pytest.fixture
def tree(tmp_path):
    """A writer of a small data set: four images, one without annotations; `write(**changes)` gives its root."""
    def write(**changes) -> object:
        blob = np.zeros((H, W), np.uint8)
        blob[5:20, 8:30] = 1
        runs = coco_mask.encode(np.asfortranarray(blob))
        crowd = np.zeros((H, W), np.uint8)
        crowd[20:40, 10:50] = 1
        flat = crowd.T.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
        counts = np.diff([0, *edges, flat.size]).tolist()
        objects = [
            dict(id=11, image_id=7, category_id=3, **square(2, 3, 10, 20)),
            dict(id=12, image_id=7, category_id=90, **square(30.5, 10, 20, 12.5)),
            dict(id=13, image_id=5, category_id=3, bbox=[8, 5, 22, 15], area=330, iscrowd=0,
                 segmentation=dict(size=[H, W], counts=runs["counts"].decode())),
            dict(id=14, image_id=5, category_id=90, bbox=[10, 20, 40, 20], area=800, iscrowd=1,
                 segmentation=dict(size=[H, W], counts=counts)),
            dict(id=15, image_id=9, category_id=90, **square(20, 10, 10, 10)),
        ]
        content = dict(images=[dict(id=i, file_name=f"{i}.png", width=W, height=H) for i in (7, 5, 2, 9)],
                       categories=[dict(id=3, name="cat"), dict(id=90, name="dog")], annotations=objects)
        for key, change in changes.items():
            content[key] = change(content[key]) if callable(change) else change
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "train2017").mkdir(exist_ok=True)
        for i in (7, 5, 2, 9):
            cv2.imwrite(str(tmp_path / f"train2017/{i}.png"), picture(i))
        (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
        return tmp_path
    return write


def test_boxes_labels_crowds_and_empty_images(tree):
    data = CocoDataset(tree())
    assert data.class_names == ("cat", "dog") and data.category_ids == [3, 90]
    assert data.image_ids.tolist() == [7, 5, 2, 9] and data.sizes.tolist() == [[H, W]] * 4
    first, second, empty, _ = (data.sample(i) for i in range(4))
    assert first.boxes.tolist() == [[2, 3, 12, 23], [30.5, 10, 50.5, 22.5]] and first.labels.tolist() == [0, 1]
    assert second.boxes.tolist() == [[8, 5, 30, 20]] and second.ignored.tolist() == [[10, 20, 50, 40]]
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,) and empty.masks is None
    assert (first.image == picture(7)).all() and first.meta.image_id == 7 and first.meta.original_size == (H, W)
    assert len(CocoDataset(tree(), filter_empty=True)) == 3
    assert len(CocoDataset(tree(), min_size=41)) == 0


def test_a_choice_of_classes_sets_labels_and_what_counts_as_empty(tree):
    data = CocoDataset(tree(), classes=("dog",), filter_empty=True)
    assert data.image_ids.tolist() == [7, 5, 9] and data.category_ids == [90]
    assert data.sample(0).labels.tolist() == [0] and len(data.sample(1).boxes) == 0
    assert CocoDataset(tree(), classes=("dog", "cat")).sample(0).labels.tolist() == [1, 0]
    with pytest.raises(UsageError, match="no category 'cow'; it has cat, dog"):
        CocoDataset(tree(), classes=("cow",))


def test_masks_as_bitmaps_and_as_polygons_cover_the_same_pixels(tree):
    bitmap, polygon = (CocoDataset(tree(), masks=kind) for kind in ("bitmap", "polygon"))
    for i in range(4):
        a, b = bitmap.sample(i), polygon.sample(i)
        assert isinstance(b.masks, Polygons) and a.masks.shape == (len(a.boxes), H, W)
        assert (a.masks == b.masks.to_bitmap()).all()
    assert bitmap.sample(1).masks[0].sum() == 15 * 22  # run lengths
    assert bitmap.sample(0).masks[0].sum() == 10 * 20  # polygon


@pytest.mark.parametrize("seed", range(20))
def test_packed_run_lengths_are_those_of_pycocotools(tree, seed):
    r = np.random.default_rng(seed)
    mask = cv2.resize(r.uniform(0, 1, r.integers(2, 30, 2)), (W, H)) > r.uniform(0.1, 0.9)
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    data = CocoDataset(tree(annotations=lambda a: [a[0] | dict(segmentation=dict(size=[H, W], counts=packed))]),
                       masks="bitmap")
    assert (data.sample(0).masks.sum(0) == mask).all()


def test_tracing_keeps_every_pixel_even_of_thin_shapes():
    mask = np.zeros((30, 30), np.uint8)
    mask[3, 4:20], mask[10:25, 7], mask[15:19, 15:24] = 1, 1, 1
    assert (Polygons([trace(mask)], (30, 30)).to_bitmap()[0] == mask).mean() > 0.99


def test_an_object_whose_polygons_have_no_corner_is_ignored(tree):
    with pytest.warns(UserWarning, match="of 1 objects 1 have no mask"):
        data = CocoDataset(tree(annotations=lambda a: [a[0] | dict(segmentation=[[1, 2, 3, 4]])]), masks="bitmap")
    assert data.sample(0).boxes.shape == (0, 4) and data.sample(0).ignored.tolist() == [[2, 3, 12, 23]]


def test_bad_boxes_are_dropped_and_counted_in_one_warning(tree):
    bad = [square(1, 1, 0, 5), square(1, 1, -3, 5), square(1, 1, float("nan"), 5), square(1, 1, 5, float("inf")),
           square(float("-inf"), 1, 5, 5), square(70, 1, 5, 5)]
    root = tree(annotations=lambda a: [dict(o, id=50 + i, image_id=7, category_id=3) for i, o in enumerate(bad)] + a)
    with pytest.warns(UserWarning) as caught:
        data = CocoDataset(root, masks="bitmap")
    message = str(caught[0].message)
    assert len(caught) == 1 and "dropped 6 of 11 boxes" in message and "annotation 50" in message
    assert len(data.sample(0).boxes) == 2 and data.sample(0).masks.sum() > 0


@pytest.mark.parametrize(("changes", "message"), [
    (dict(annotations=lambda a: [a[0] | dict(image_id=77)]), "Annotation 11 of .*belongs to image 77"),
    (dict(annotations=lambda a: [a[0] | dict(category_id=4)]), "Annotation 11 of .*belongs to category 4"),
    (dict(annotations=lambda a: [a[0] | dict(bbox=[1, 2, 3])]), r"Annotation number 1 of .*\$.bbox"),
    (dict(annotations=lambda a: [a[0] | dict(bbox=[1, 2, None, 4])]), r"Annotation number 1 of .*\$.bbox"),
    (dict(annotations=lambda a: [dict(bbox=[1, 2, 3, 4], category_id=3)]), "image_id"),
    (dict(images=lambda i: [i[0], i[0]], annotations=[]), "two images with the id 7"),
    (dict(images=lambda i: [i[0] | dict(width=0)], annotations=[]), "Image 7 of .*no positive width"),
    (dict(images=[dict(id=1, file_name="1.png")]), "width"),
    (dict(categories=3), "categories"),
])
def test_contradictions_are_named_with_file_and_record(tree, changes, message):
    with pytest.raises(DataError, match=message) as error:
        CocoDataset(tree(**changes))
    assert "instances_train2017.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(tree, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        CocoDataset(tmp_path / "nowhere")
    root = tree()
    file = root / "annotations/instances_train2017.json"
    text = file.read_text()
    for broken in (text[:-30], "", "hello", "[1, 2]"):
        file.write_text(broken)
        with pytest.raises(DataError, match="instances_train2017.json cannot be read"):
            CocoDataset(root)
    file.write_bytes(text.replace("cat", "\u00e9").encode("latin-1"))
    with pytest.raises(DataError, match="instances_train2017.json cannot be read"):
        CocoDataset(root)
    file.unlink()
    with pytest.raises(DataError, match="There is no annotation file"):
        CocoDataset(root)
    with pytest.raises(DataError, match="There is no annotation file"):
        fingerprint(file)
    file.write_text(text)
    with pytest.raises(DataError, match="There is no image folder .*val2017"):
        CocoDataset(root, images="val2017")
    (root / "train2017/7.png").unlink()
    with pytest.raises(DataError, match="There is no image file .*7.png"):
        CocoDataset(root).sample(0)


@pytest.mark.parametrize(("segmentation", "message"), [
    (dict(size=[H, W], counts=[5, 5]), "do not add up"),
    (dict(size=[H, W], counts="zzz"), "not COCO's text"),
    (dict(size=[W, H], counts=[5, H * W - 5]), "are for 40 x 60"),
    ("polygon", "is text"),
])
def test_an_object_with_a_broken_segmentation_is_ignored_with_a_warning(tree, segmentation, message):
    root = tree(annotations=lambda a: [a[0] | dict(segmentation=segmentation), a[1]])
    with pytest.warns(UserWarning, match=f"of 2 objects 1 have a broken one .*annotation 11: .*{message}"):
        data = CocoDataset(root, masks="bitmap")
    assert data.sample(0).ignored.tolist() == [[2, 3, 12, 23]] and data.sample(0).labels.tolist() == [1]


def test_a_picture_of_another_size_than_annotated_is_an_error(tree):
    root = tree()
    cv2.imwrite(str(root / "train2017/7.png"), picture()[:, :50])
    with pytest.raises(DataError, match=r"7.png has 50 x 40 pixels, but .* says 60 x 40 \(image 7\)"):
        CocoDataset(root).sample(0)


def rotated(path, array: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(array[..., ::-1]).save(path, exif=exif, quality=100, subsampling=0)


def test_an_exif_rotated_picture_agrees_with_its_annotations(tree):
    """Whichever of the two ways around the file's width and height are meant."""
    root = tree(images=lambda i: [i[0] | dict(file_name="7.jpg"), *i[1:]])
    sideways = cv2.rotate(picture(), cv2.ROTATE_90_COUNTERCLOCKWISE)
    rotated(root / "train2017/7.jpg", sideways, 6)  # to be turned clockwise: annotated upright
    assert np.abs(CocoDataset(root).sample(0).image.astype(int) - picture()).mean() < 3
    rotated(root / "train2017/7.jpg", picture(), 6)  # annotated as stored
    assert np.abs(CocoDataset(root).sample(0).image.astype(int) - picture()).mean() < 3
    assert read_image(root / "train2017/7.jpg").shape == (W, H, 3)


def test_every_usual_kind_of_picture_becomes_8_bit_colour(tmp_path):
    bgr = picture()
    rgb, gray = Image.fromarray(bgr[..., ::-1]), cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "16.png"), bgr.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "gray16.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "gray16.tif"), gray.astype(np.uint16) * 257)
    rgb.quantize(256).save(tmp_path / "palette.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(gray).save(tmp_path / "gray.jpg", quality=100)
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path)
        wanted = np.repeat(gray[..., None], 3, 2) if "gray" in path.name else bgr
        assert image.dtype == np.uint8 and image.shape == (H, W, 3), path.name
        assert np.abs(image.astype(int) - wanted).mean() < 6, path.name


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp"])
def test_a_torso_of_a_picture_is_an_error(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    cv2.imwrite(str(path), picture())
    whole = path.read_bytes()
    assert read_image(path).shape == (H, W, 3)
    for share in (0.9, 0.5, 0.01, 0):
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(DataError, match="x.* is (not an image file|damaged)"):
            read_image(path)
    path.write_text("no picture")
    with pytest.raises(DataError, match="is not an image file"):
        read_image(path)


def test_proposals_come_with_their_image(tree):
    root = tree()
    some = {int(i): np.array([[1, 2, 30, 40, 0.3], [0, 0, 9, 9, 0.8]]) + i for i in (7, 5, 2, 9)}
    save_proposals(root / "p.npz", some)
    data = CocoDataset(root, proposals=root / "p.npz", max_proposals=1)
    assert data.sample(1).proposals.tolist() == [[5, 5, 14, 14]]  # the best one
    assert len(CocoDataset(root, proposals=root / "p.npz").sample(1).proposals) == 2
    save_proposals(root / "q.npz", {7: some[7]})
    with pytest.raises(DataError, match="q.npz has nothing for image 5"):
        CocoDataset(root, proposals=root / "q.npz")
    with pytest.raises(DataError, match="There is no proposal file"):
        ProposalFile(root / "r.npz")
    (root / "r.npz").write_bytes(pickle.dumps(some))
    with pytest.raises(DataError, match="r.npz is not a proposal file"):
        ProposalFile(root / "r.npz")


def test_images_that_lose_all_objects_are_replaced(tree):
    data = CocoDataset(tree(), transforms=(FilterBoxes(14),), filter_empty=True)
    ids = {data.load(2, np.random.default_rng(seed)).meta.image_id for seed in range(20)}
    assert ids == {5}  # the only image with an object wider and higher than 14 pixels that is no crowd
    with pytest.raises(DataError, match="keep no object"):
        CocoDataset(tree(), transforms=(FilterBoxes(50),)).load(0, np.random.default_rng(0))


def test_a_data_set_reads_the_same_in_another_process(tree):
    data = CocoDataset(tree(), masks="bitmap")
    copy = pickle.loads(pickle.dumps(data))
    assert (copy.sample(0).masks == data.sample(0).masks).all() and len(copy) == len(data)


@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 2**31, reason="needs 2 GB of disk")
def test_an_annotation_file_as_large_as_cocos_opens_in_15_seconds_and_2_gigabytes(tmp_path):
    code = """
import sys, time
from detcore.data.coco import CocoDataset
from detcore.records import peak_memory_gb
from tests.data.synthetic import write_annotations
write_annotations(sys.argv[1] + "/a.json")
begin = time.process_time()
data = CocoDataset(sys.argv[1], "a.json", ".", masks="polygon")
seconds = time.process_time() - begin  # one thread's own time: tests run side by side
print(len(data), len(data._boxes), seconds, peak_memory_gb()["resident_gb"])
"""
    out = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True).stdout
    images, annotations, seconds, gigabytes = out.split()
    assert (int(images), int(annotations)) == (118_000, 860_000)
    assert float(seconds) < 15 and float(gigabytes) < 2
