"""Faults of raw folders: pairing, files, labelme polygons, class lists."""

import json
import shutil

from PIL import Image

from tests.faults.corpus import HEIGHT, WIDTH, fault, write_clean_folder
from tests.toy import NAMES

PHOTO, MAP = "images/train/train_2.jpg", "labels/train/train_2.png"
POLYGON = [[2.0, 2.0], [20.0, 2.0], [20.0, 15.0]]


def write_polygons(root, text: str) -> None:
    """Replaces a map by a labelme file with this text."""
    (root / MAP).unlink()
    (root / MAP).with_suffix(".json").write_text(text)


def labelme(**changes) -> str:
    shapes = [{"label": "red", "points": POLYGON, "shape_type": "polygon"}]
    return json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH} | changes)


@fault("folder", "bad_pair", file=PHOTO)
def photo_without_map(root):
    (root / MAP).unlink()


@fault("folder", "bad_pair", file=MAP)
def map_without_photo(root):
    (root / PHOTO).unlink()


@fault("folder", "bad_pair", file="labels/train/Train_2.png")
def names_differ_in_case(root):
    (root / MAP).rename(root / "labels/train/Train_2.png")


@fault("folder", "bad_pair", file="images/train/train_2.png")
def photo_in_two_formats(root):
    Image.open(root / PHOTO).save(root / "images/train/train_2.png")


@fault("folder", "bad_pair", file="labels/train/train_2.jpg")
def folder_map_jpeg(root):
    Image.open(root / MAP).save(root / "labels/train/train_2.jpg")
    (root / MAP).unlink()


@fault("folder", "bad_pair", file="images/train/train_0.jpg")
def maps_of_another_split(root):
    shutil.move(root / "labels/train", root / "labels/val")


@fault("folder", "left_out", file="images")
def photos_beside_the_splits(root):
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (root / folder / f"train/train_0.{suffix}").rename(root / folder / f"train_0.{suffix}")


@fault("folder", "left_out", file="images/test")
def photos_of_a_split_without_maps(root):
    (root / "images/test").mkdir()
    shutil.move(root / PHOTO, root / "images/test/test_2.jpg")
    (root / MAP).unlink()


@fault("folder", "bad_pair")
def folder_without_files(root):
    for folder in ("images", "labels"):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()


@fault("folder", "unreadable", column="image", file=PHOTO)
def photo_is_dangling_link(root):
    (root / PHOTO).unlink()
    (root / PHOTO).symlink_to("/nowhere/train_2.jpg")


@fault("folder", "bad_image", column="image", file=PHOTO)
def photo_is_web_page(root):
    (root / PHOTO).write_text("<html><body>403 Forbidden</body></html>")


@fault("folder", "bad_image", column="image", file=PHOTO)
def photo_of_zero_bytes(root):
    (root / PHOTO).write_bytes(b"")


@fault("folder", "bad_label_map", column="label_map", file=MAP)
def folder_map_is_lfs_pointer(root):
    (root / MAP).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99\n")


@fault("folder", "bad_label_map", column="label_map", file=MAP)
def folder_map_in_colours(root):
    Image.open(root / MAP).convert("RGB").save(root / MAP)


@fault("folder", "size_mismatch", column="label_map", file=MAP)
def folder_map_of_another_size(root):
    Image.open(root / MAP).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(root / MAP)


@fault("folder", "reduce_zero_label", column="label_map", also=("label_range",))
def folder_classes_from_1(root):
    for path in (root / "labels").rglob("*.png"):
        Image.open(path).point(lambda value: 0 if value == 255 else value + 1).save(path)


@fault("folder", "no_vocabulary")
def folder_without_class_list(root):
    (root / "classes.txt").unlink()


@fault("folder", "bad_vocabulary", file="classes.txt")
def folder_class_list_empty(root):
    (root / "classes.txt").write_text("")


@fault("folder", "doubtful_names", file="classes.txt", row=1)
def folder_class_list_with_a_blank_line(root):
    (root / "classes.txt").write_text("\n\n".join(NAMES) + "\n\n")


@fault("folder", "class_count", column="label_map", also=("label_range",))
def folder_class_list_short(root):
    (root / "classes.txt").write_text("\n".join(NAMES[:1]) + "\n")


@fault("folder", "leak", column="image", file="images/val/val_0.jpg")
def folder_photo_in_two_splits(root):
    write_clean_folder(root, ("train", "val"))
    shutil.copy(root / "images/train/train_1.jpg", root / "images/val/val_0.jpg")


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_cut_off(root):
    write_polygons(root, labelme()[:-10])


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_of_unknown_class(root):
    write_polygons(root, labelme(shapes=[{"label": "Red", "points": POLYGON}]))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_without_points(root):
    write_polygons(root, labelme(shapes=[{"label": "red", "points": []}]))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_of_another_tool(root):
    """COCO's JSON where labelme's is expected."""
    write_polygons(root, json.dumps({"annotations": [{"segmentation": [[1, 2, 3, 4, 5, 6]], "category_id": 1}]}))


@fault("folder", "size_mismatch", column="label_map", file="train_2.json")
def polygons_of_a_larger_photo(root):
    write_polygons(root, labelme(imageHeight=10 * HEIGHT, imageWidth=10 * WIDTH))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_with_a_line(root):
    write_polygons(root, labelme(shapes=[{"label": "red", "points": POLYGON[:2], "shape_type": "line"}]))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_of_two_points(root):
    write_polygons(root, labelme(shapes=[{"label": "red", "points": POLYGON[:2]}]))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_without_size(root):
    write_polygons(root, labelme(imageHeight=None))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json")
def polygons_with_size_as_text(root):
    write_polygons(root, labelme(imageHeight=str(HEIGHT), imageWidth=str(WIDTH)))


@fault("folder", "bad_polygons", column="label_map", file="train_2.json", also=("no_vocabulary",))
def polygons_with_a_line_and_no_class_list(root):
    polygons_with_a_line(root)
    (root / "classes.txt").unlink()


@fault("folder", "no_label", column="label_map", file="train_2.json")
def polygons_that_ignore_everything(root):
    write_polygons(root, labelme(shapes=[{"label": "__ignore__", "points": POLYGON}]))


@fault("folder", "")
def polygons_partly_ignored(root):
    corner = [[2.0, 2.0], [9.0, 2.0], [9.0, 6.0]]
    write_polygons(root, labelme(shapes=[{"label": "red", "points": POLYGON}, {"label": "__ignore__", "points": corner}]))


@fault("folder", "")
def polygons_in_a_file_in_capitals(root):
    write_polygons(root, labelme())
    (root / MAP).with_suffix(".json").rename((root / MAP).with_suffix(".JSON"))


@fault("folder", "")
def polygons_clean(root):
    write_polygons(root, labelme())


@fault("folder", "")
def hidden_files_of_the_desktop(root):
    (root / "images/train/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "labels/train/._train_2.png").write_bytes(b"\0\5\x16\7")


@fault("folder", "")
def suffix_in_capitals(root):
    (root / PHOTO).rename(root / "images/train/train_2.JPG")


@fault("folder", "")
def windows_class_list(root):
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode())


