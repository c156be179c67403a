// NumPy's side of the bindings: finding the bytes of a value that is pushed, and recycling the arrays of batches.
// All of it runs under the GIL.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace relive {

constexpr int64_t kSingle = -1;  // a value of one transition, without a leading axis

struct Scratch {
  alignas(16) char bytes[32];  // room for a scalar converted to its dtype
};

// Owns one reference.
class Reference {
 public:
  explicit Reference(PyObject* object) : object_(object) {
    if (!object) throw std::bad_alloc();
  }
  Reference(Reference&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Reference& operator=(Reference&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  Reference(const Reference& other) : object_(Py_NewRef(other.object_)) {}
  ~Reference() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyArrayObject* array() const { return reinterpret_cast<PyArrayObject*>(object_); }

 private:
  PyObject* object_;
};

// True for a C-contiguous, aligned array of exactly this dtype and shape (`shape` follows a leading axis of `count`).
inline bool is_array(PyObject* value, PyArray_Descr* descr, const std::vector<npy_intp>& shape, int64_t count) {
  if (!PyArray_CheckExact(value)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(value);
  const int lead = count == kSingle ? 0 : 1;
  if (PyArray_NDIM(array) != lead + static_cast<int>(shape.size()) || !PyArray_ISCARRAY_RO(array)) return false;
  const npy_intp* dims = PyArray_DIMS(array);
  if (lead && dims[0] != count) return false;
  if (!std::equal(shape.begin(), shape.end(), dims + lead)) return false;
  return PyArray_DESCR(array) == descr || PyArray_EquivTypes(PyArray_DESCR(array), descr);
}

// One leaf of the schema: what a value of it looks like.
class ValueType {
 public:
  // `low` and `high` are inclusive bounds of integers: none, or one for each element of the shape.
  ValueType(PyArray_Descr* descr, std::vector<npy_intp> shape, std::vector<int64_t> low, std::vector<int64_t> high)
      : descr_(Py_NewRef(reinterpret_cast<PyObject*>(descr))),
        shape_(std::move(shape)),
        low_(std::move(low)),
        high_(std::move(high)) {
    num_elements_ = 1;
    for (const npy_intp side : shape_) num_elements_ *= side;
  }

  PyArray_Descr* descr() const { return reinterpret_cast<PyArray_Descr*>(descr_.get()); }
  const std::vector<npy_intp>& shape() const { return shape_; }
  uint64_t bytes() const { return num_elements_ * PyDataType_ELSIZE(descr()); }

  // The bytes of a value of this type, or of `count` of them; null if it has to be converted or refused. Values that
  // `chosen` leaves out may be out of bounds.
  const char* find(PyObject* value, int64_t count, const uint8_t* chosen, Scratch& scratch) const {
    const char* bytes = nullptr;
    if (is_array(value, descr(), shape_, count))
      bytes = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(value));
    else if (count == kSingle && shape_.empty())
      bytes = scalar(value, scratch);
    if (bytes && !low_.empty() && !within_bounds(bytes, count == kSingle ? 1 : count, chosen)) return nullptr;
    return bytes;
  }

 private:
  template <typename T>
  static const char* store(T value, Scratch& scratch) {
    std::memcpy(scratch.bytes, &value, sizeof(T));
    return scratch.bytes;
  }

  // Python's own numbers, and NumPy scalars of exactly this dtype.
  const char* scalar(PyObject* value, Scratch& scratch) const {
    const int type = descr()->type_num;
    if (PyLong_CheckExact(value)) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
      if (overflow) return nullptr;
      if (type == NPY_INT64) return store<int64_t>(number, scratch);
      if (type == NPY_INT32 && number == static_cast<int32_t>(number)) return store<int32_t>(number, scratch);
      if (type == NPY_UINT8 && number == static_cast<uint8_t>(number)) return store<uint8_t>(number, scratch);
      return nullptr;
    }
    if (PyBool_Check(value)) return type == NPY_BOOL ? store<uint8_t>(value == Py_True, scratch) : nullptr;
    if (PyFloat_CheckExact(value) && type == NPY_FLOAT64) return store(PyFloat_AS_DOUBLE(value), scratch);
    if (PyArray_CheckScalar(value) && !PyArray_Check(value) && bytes() <= sizeof(scratch.bytes)) {
      Reference found(reinterpret_cast<PyObject*>(PyArray_DescrFromScalar(value)));
      auto* scalar_descr = reinterpret_cast<PyArray_Descr*>(found.get());
      if (scalar_descr->type_num != type || (!PyTypeNum_ISNUMBER(type) && type != NPY_BOOL)) return nullptr;
      PyArray_ScalarAsCtype(value, scratch.bytes);
      return scratch.bytes;
    }
    return nullptr;
  }

  template <typename T>
  bool all_within(const char* bytes, int64_t count, const uint8_t* chosen) const {
    for (int64_t i = 0; i < count * num_elements_; ++i) {
      if (chosen && !chosen[i / num_elements_]) continue;
      T value;
      std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
      const size_t element = i % num_elements_;
      if (!std::in_range<int64_t>(value) || static_cast<int64_t>(value) < low_[element] ||
          static_cast<int64_t>(value) > high_[element])
        return false;
    }
    return true;
  }

  bool within_bounds(const char* bytes, int64_t count, const uint8_t* chosen) const {
    switch (PyDataType_ELSIZE(descr())) {
      case 1:
        return is_signed() ? all_within<int8_t>(bytes, count, chosen) : all_within<uint8_t>(bytes, count, chosen);
      case 2:
        return is_signed() ? all_within<int16_t>(bytes, count, chosen) : all_within<uint16_t>(bytes, count, chosen);
      case 4:
        return is_signed() ? all_within<int32_t>(bytes, count, chosen) : all_within<uint32_t>(bytes, count, chosen);
      default:
        return is_signed() ? all_within<int64_t>(bytes, count, chosen) : all_within<uint64_t>(bytes, count, chosen);
    }
  }

  bool is_signed() const { return PyTypeNum_ISSIGNED(descr()->type_num); }

  Reference descr_;
  std::vector<npy_intp> shape_;
  std::vector<int64_t> low_, high_;
  int64_t num_elements_;
};

// True if float32 can hold the number, rounded; infinities and NaN are themselves.
inline bool narrow(double number, float& to) {
  to = static_cast<float>(number);
  return std::isfinite(to) || !std::isfinite(number);
}

// Rewards are stored as float32; float64, what Gymnasium gives, is the one lossy cast there is.
inline bool find_reward(PyObject* value, int64_t count, std::vector<float>& reward) {
  if (PyFloat_Check(value) && count == kSingle) {  // np.float64 is one too
    return narrow(PyFloat_AS_DOUBLE(value), reward[0]);
  }
  if (PyLong_Check(value) && !PyBool_Check(value) && count == kSingle) {
    const double number = PyLong_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    return narrow(number, reward[0]);
  }
  if (!PyArray_CheckExact(value)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(value);
  if (PyArray_NDIM(array) != (count == kSingle ? 0 : 1) || !PyArray_ISCARRAY_RO(array)) return false;
  if (count != kSingle && PyArray_DIM(array, 0) != count) return false;
  const int type = PyArray_TYPE(array);
  if (type == NPY_FLOAT32) {
    std::memcpy(reward.data(), PyArray_DATA(array), reward.size() * sizeof(float));
    return true;
  }
  const auto* numbers = static_cast<const double*>(PyArray_DATA(array));
  if (type != NPY_FLOAT64) return false;
  for (size_t i = 0; i < reward.size(); ++i)
    if (!narrow(numbers[i], reward[i])) return false;
  return true;
}

// `count` values of a type, over memory that `owner` keeps. A new reference.
inline PyObject* array_over(const ValueType& type, uint64_t count, char* start, nb::handle owner) {
  std::vector<npy_intp> shape{static_cast<npy_intp>(count)};
  shape.insert(shape.end(), type.shape().begin(), type.shape().end());
  nb::object array = nb::steal(
      PyArray_NewFromDescr(&PyArray_Type, reinterpret_cast<PyArray_Descr*>(Py_NewRef(type.descr())),
                           static_cast<int>(shape.size()), shape.data(), nullptr, start, NPY_ARRAY_CARRAY, nullptr));
  if (!array.is_valid() ||
      PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array.ptr()), Py_NewRef(owner.ptr())) != 0)
    throw nb::python_error();
  return array.release().ptr();
}

// The arrays of batches of one size. An array that nobody else refers to is used again: touching fresh memory and
// making array objects would cost more than the copy. Views, tensors and buffers made of an array refer to it.
class ArrayPool {
 public:
  ArrayPool(std::vector<ValueType> types, npy_intp count) : types_(std::move(types)), count_(count) {
    kept_.resize(types_.size());
  }

  npy_intp count() const { return count_; }

  // A new array of one type. A new reference.
  PyObject* make(size_t index) const { return Py_NewRef(create(types_[index]).get()); }

  // One array of each type, all or all but the last.
  nb::object tuple(bool with_last) {
    const size_t size = types_.size() - !with_last;
    nb::object arrays = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(size)));
    if (!arrays.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < size; ++i) {
      const Reference array = take(i);
      PyTuple_SET_ITEM(arrays.ptr(), i, Py_NewRef(array.get()));
    }
    return arrays;
  }

 private:
  Reference take(size_t index) {
    std::deque<Reference>& kept = kept_[index];
    for (const Reference& array : kept)
      if (Py_REFCNT(array.get()) == 1 && untouched(array, types_[index])) return array;
    const Reference made = create(types_[index]);
    if (PyArray_NBYTES(made.array()) > kLargest) return made;
    kept.push_back(made);
    if (kept.size() > kKept) {
      const Reference oldest = std::move(kept.front());  // may call back when it goes, so it goes last
      kept.pop_front();
    }
    return made;
  }

  static constexpr size_t kKept = 3;              // a batch in use, one prefetched, one being made
  static constexpr npy_intp kLargest = 64 << 20;  // larger arrays are not kept: their memory would be missed elsewhere

  Reference create(const ValueType& type) const {
    std::vector<npy_intp> shape{count_};
    shape.insert(shape.end(), type.shape().begin(), type.shape().end());
    return Reference(PyArray_Empty(static_cast<int>(shape.size()), shape.data(),
                                   reinterpret_cast<PyArray_Descr*>(Py_NewRef(type.descr())), 0));
  }

  // A former holder may have reshaped the array in place or made it read-only.
  bool untouched(const Reference& array, const ValueType& type) const {
    return PyArray_ISWRITEABLE(array.array()) && is_array(array.get(), type.descr(), type.shape(), count_);
  }

  std::vector<ValueType> types_;
  npy_intp count_;
  std::vector<std::deque<Reference>> kept_;
};

}  // namespace relive
