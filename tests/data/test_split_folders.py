from ofaseg.data.split_folders import find_split_folders


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_shared_split_folders_train_first(tmp_path):
    touch(tmp_path, "images/val/a.jpg", "images/train2017/b.jpg", "labels/val/a.png", "labels/train2017/b.png")
    assert find_split_folders(tmp_path / "images", tmp_path / "labels") == (["train2017", "val"], [])


def test_what_is_left_out_is_named(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "labels/train/a.png", "images/test/t.jpg")
    touch(tmp_path / "images", "b.jpg", "more/c.PNG", "notes.txt")
    names, left_out = find_split_folders(tmp_path / "images", tmp_path / "labels")
    assert names == ["train"]
    folder, photos = map(str, left_out)
    assert folder.startswith(f"{tmp_path}/images/test: the folder is left out, for there is no {tmp_path}/labels/test; ")
    assert photos.startswith(f"{tmp_path}/images: 2 photos (first b.jpg) lie beside the split folders train: left out; move them")


def test_without_split_folders_all_photos_count(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/city/b.jpg", "labels/a.png", "labels/city/b.png")
    assert find_split_folders(tmp_path / "images", tmp_path / "labels") == ([], [])


def test_label_maps_below_the_photos_are_no_photos(tmp_path):
    touch(tmp_path, "train/a.jpg", "labels/train/a.png", "labels/train/b.png", "b.jpg")
    names, left_out = find_split_folders(tmp_path, tmp_path / "labels")
    assert names == ["train"] and len(left_out) == 1 and "1 photo (b.jpg) lies beside" in str(left_out[0])
