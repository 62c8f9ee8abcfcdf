(* Random vectors with a mean and a covariance, given what is known.

   Random variables are the elements f of a commutative algebra W over the reals R: they can be added, multiplied and
   scaled. An expectation is a linear, unital functional on W that is not negative on squares. That is a probability
   space seen through its moments; an instance is W = the polynomials in the entries of a Gaussian vector.

   Knowing something is a conditional expectation: a linear map W -> W that averages over what is not known. Knowing
   nothing is one of them, so that every statement below holds for laws given x_0, given x_t, and given nothing alike.

   A law is a mean and a covariance. For Gaussian vectors these determine it, and linear images of Gaussians are
   Gaussian, so equality of means and covariances is equality of laws there. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- Expectations ---- *)

Section Expectation.
Variables (R : realFieldType) (W : comAlgType R).

Record expectation := Expectation {
  expect :> W -> R;
  expect_linear : forall a f g, expect (a *: f + g) = a * expect f + expect g;
  expect1 : expect 1 = 1;
  expect_square : forall f, 0 <= expect (f * f)
}.

(* given C f is the expectation of f given what C knows: fixed once averaged (averages), of the same expectation. *)
Record conditioning (E : expectation) := Conditioning {
  given :> W -> W;
  given_linear : forall a f g, given (a *: f + g) = a *: given f + given g;
  given1 : given 1 = 1;
  given_averages : forall f g, given (given f * g) = given f * given g;
  expect_given : forall f, E (given f) = E f
}.

Variable E : expectation.

Lemma expectZ a f : E (a *: f) = a * E f.
Proof.
have E0 : E 0 = 0.
  by have := expect_linear E 1 0 0; rewrite scale1r addr0 mul1r -[LHS]addr0 => /addrI <-.
by rewrite -[a *: f]addr0 expect_linear E0 addr0.
Qed.

Lemma expect_constant a : E a%:A = a.
Proof. by rewrite expectZ expect1 mulr1. Qed.

(* Knowing nothing: every average is a number. *)
Program Definition nothing : conditioning E := @Conditioning E (fun f => (E f)%:A) _ _ _ _.
Next Obligation. by rewrite expect_linear scalerDl scalerA. Qed.
Next Obligation. by rewrite expect1 scale1r. Qed.
Next Obligation. by rewrite mulr_algl expectZ mulr_algl scalerA. Qed.
Next Obligation. exact: expect_constant. Qed.

Variable C : conditioning E.
Implicit Types (f g : W) (a : R).

Lemma given0 : C 0 = 0.
Proof. by have := given_linear C 1 0 0; rewrite !scale1r addr0 -[LHS]addr0 => /addrI <-. Qed.

Lemma givenZ a f : C (a *: f) = a *: C f.
Proof. by rewrite -[a *: f]addr0 given_linear given0 addr0. Qed.

Lemma givenD f g : C (f + g) = C f + C g.
Proof. by rewrite -[f in LHS]scale1r given_linear scale1r. Qed.

Lemma given_sum (I : finType) (f : I -> W) : C (\sum_i f i) = \sum_i C (f i).
Proof. exact: (big_morph _ givenD given0). Qed.

Lemma given_idem f : C (C f) = C f.
Proof. by rewrite -[C f in LHS]mulr1 given_averages given1 mulr1. Qed.

End Expectation.

(* ---- Means and covariances ---- *)

Section Moments.
Variables (R : realFieldType) (W : comAlgType R).

(* A matrix of numbers, as a matrix of (constant) random variables. *)
Definition cst m n (A : 'M[R]_(m, n)) : 'M[W]_(m, n) := map_mx (in_alg W) A.

Lemma cst_mul m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(n, p)) : cst (A *m B) = cst A *m cst B.
Proof. exact: map_mxM. Qed.

Lemma cstD m n (A B : 'M[R]_(m, n)) : cst (A + B) = cst A + cst B.
Proof. exact: map_mxD. Qed.

Lemma cstB m n (A B : 'M[R]_(m, n)) : cst (A - B) = cst A - cst B.
Proof. exact: map_mxB. Qed.

Lemma cst_tr m n (A : 'M[R]_(m, n)) : cst A^T = (cst A)^T.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.

Lemma cst0 m n : cst (0 : 'M[R]_(m, n)) = 0.
Proof. exact: map_mx0. Qed.

Lemma cst1 n : cst (1%:M : 'M[R]_n) = 1%:M.
Proof. exact: map_mx1. Qed.

Variable E : expectation W.

Lemma cst_inj m n : injective (@cst m n).
Proof.
move=> A B /matrixP eqAB; apply/matrixP=> i j.
by have := eqAB i j; rewrite !mxE => /(congr1 E); rewrite !expect_constant.
Qed.

Variable C : conditioning E.

Definition mean m n (X : 'M[W]_(m, n)) : 'M[W]_(m, n) := map_mx C X.
Definition known m n (X : 'M[W]_(m, n)) : Prop := mean X = X.
Definition centre m n (X : 'M[W]_(m, n)) : 'M[W]_(m, n) := X - mean X.
Definition cov m n (X : 'cV[W]_m) (Y : 'cV[W]_n) : 'M[W]_(m, n) := mean (centre X *m (centre Y)^T).

(* X has, given what C knows, the mean mu (which may depend on what is known) and the covariance P. *)
Definition law n (X : 'cV[W]_n) (mu : 'cV[W]_n) (P : 'M[R]_n) : Prop := mean X = mu /\ cov X X = cst P.
(* Implied by independence; for Gaussian vectors it is independence. *)
Definition uncorrelated m n (X : 'cV[W]_m) (Y : 'cV[W]_n) : Prop := cov X Y = 0.

Section Linear.
Variables (m n p : nat).

Lemma meanD (X Y : 'M[W]_(m, n)) : mean (X + Y) = mean X + mean Y.
Proof. by apply/matrixP=> i j; rewrite !mxE givenD. Qed.

Lemma meanN (X : 'M[W]_(m, n)) : mean (- X) = - mean X.
Proof. by apply/matrixP=> i j; rewrite !mxE -scaleN1r givenZ scaleN1r. Qed.

Lemma meanB (X Y : 'M[W]_(m, n)) : mean (X - Y) = mean X - mean Y.
Proof. by rewrite meanD meanN. Qed.

Lemma mean0 : mean (0 : 'M[W]_(m, n)) = 0.
Proof. by apply/matrixP=> i j; rewrite !mxE given0. Qed.

Lemma mean_tr (X : 'M[W]_(m, n)) : mean X^T = (mean X)^T.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.

Lemma mean_known (X : 'M[W]_(m, n)) : known (mean X).
Proof. by apply/matrixP=> i j; rewrite !mxE given_idem. Qed.

Lemma cst_known (A : 'M[R]_(m, n)) : known (cst A).
Proof. by apply/matrixP=> i j; rewrite !mxE givenZ given1. Qed.

(* What is known comes out of an average. *)
Lemma mean_mull (K : 'M[W]_(m, n)) (X : 'M[W]_(n, p)) : known K -> mean (K *m X) = K *m mean X.
Proof.
move=> /matrixP knownK; apply/matrixP=> i j; rewrite !mxE given_sum; apply: eq_bigr => k _.
by have := knownK i k; rewrite !mxE => <-; rewrite given_averages.
Qed.

End Linear.

Lemma mean_mulr m n p (X : 'M[W]_(m, n)) (K : 'M[W]_(n, p)) : known K -> mean (X *m K) = mean X *m K.
Proof.
move=> knownK; rewrite -[X *m K]trmxK trmx_mul mean_tr mean_mull ?trmx_mul -?mean_tr ?trmxK //.
by rewrite /known mean_tr knownK.
Qed.

Lemma known_cst_mul m n p (A : 'M[R]_(m, n)) (X : 'M[W]_(n, p)) : known X -> known (cst A *m X).
Proof. by move=> knownX; rewrite /known mean_mull ?knownX //; apply: cst_known. Qed.

Lemma knownD m n (X Y : 'M[W]_(m, n)) : known X -> known Y -> known (X + Y).
Proof. by rewrite /known meanD => -> ->. Qed.

Lemma knownB m n (X Y : 'M[W]_(m, n)) : known X -> known Y -> known (X - Y).
Proof. by rewrite /known meanB => -> ->. Qed.

Lemma centreD m n (X Y : 'M[W]_(m, n)) : centre (X + Y) = centre X + centre Y.
Proof. by rewrite /centre meanD opprD addrACA. Qed.

Lemma centre_mull m n p (A : 'M[R]_(m, n)) (X : 'M[W]_(n, p)) : centre (cst A *m X) = cst A *m centre X.
Proof. by rewrite /centre mean_mull ?mulmxBr //; apply: cst_known. Qed.

Lemma centre_known m n (X : 'M[W]_(m, n)) : known X -> centre X = 0.
Proof. by rewrite /centre => ->; rewrite subrr. Qed.

Lemma mean_centre m n (X : 'M[W]_(m, n)) : mean (centre X) = 0.
Proof. by rewrite /centre meanB mean_known subrr. Qed.

Section Covariance.
Variables (l m n : nat).
Implicit Types (X : 'cV[W]_m) (Y : 'cV[W]_n).

Lemma cov_tr X Y : cov Y X = (cov X Y)^T.
Proof. by rewrite /cov -mean_tr trmx_mul trmxK. Qed.

Lemma covDl X X' Y : cov (X + X') Y = cov X Y + cov X' Y.
Proof. by rewrite /cov centreD mulmxDl meanD. Qed.

Lemma covNl X Y : cov (- X) Y = - cov X Y.
Proof. by rewrite /cov /centre meanN -opprD mulNmx meanN. Qed.

Lemma cov_mull (A : 'M[R]_(l, m)) X Y : cov (cst A *m X) Y = cst A *m cov X Y.
Proof. by rewrite /cov centre_mull -mulmxA mean_mull //; apply: cst_known. Qed.

Lemma cov_knownl X Y : known X -> cov X Y = 0.
Proof. by move=> knownX; rewrite /cov centre_known // mul0mx mean0. Qed.

Lemma covBl X X' Y : cov (X - X') Y = cov X Y - cov X' Y.
Proof. by rewrite covDl covNl. Qed.

End Covariance.

Lemma covDr m n (X : 'cV[W]_m) (Y Y' : 'cV[W]_n) : cov X (Y + Y') = cov X Y + cov X Y'.
Proof. by rewrite cov_tr covDl linearD /= -!cov_tr. Qed.

Lemma cov_mulr l m n (B : 'M[R]_(l, n)) (X : 'cV[W]_m) (Y : 'cV[W]_n) : cov X (cst B *m Y) = cov X Y *m cst B^T.
Proof. by rewrite cov_tr cov_mull trmx_mul -cov_tr -cst_tr. Qed.

Lemma cov_knownr m n (X : 'cV[W]_m) (Y : 'cV[W]_n) : known Y -> cov X Y = 0.
Proof. by move=> knownY; rewrite cov_tr cov_knownl ?trmx0. Qed.

Lemma uncorrelatedC m n (X : 'cV[W]_m) (Y : 'cV[W]_n) : uncorrelated X Y -> uncorrelated Y X.
Proof. by rewrite /uncorrelated => XY0; rewrite cov_tr XY0 trmx0. Qed.

(* The law of a linear transition. *)
Theorem law_linear m n (A : 'M[R]_(m, n)) (X : 'cV[W]_n) (eta : 'cV[W]_m) mu nu P Q :
  law X mu P -> law eta nu Q -> uncorrelated X eta ->
  law (cst A *m X + eta) (cst A *m mu + nu) (A *m P *m A^T + Q).
Proof.
move=> [meanX covX] [mean_eta cov_eta] XY0; split.
  by rewrite meanD mean_mull ?meanX ?mean_eta //; apply: cst_known.
rewrite covDl !covDr !cov_mull !cov_mulr covX cov_eta XY0 (uncorrelatedC XY0).
by rewrite mulmx0 mul0mx addr0 add0r cstD !cst_mul mulmxA.
Qed.

(* Adding what is known moves the mean alone. *)
Lemma law_shift n (X : 'cV[W]_n) mu P (Z : 'cV[W]_n) : known Z -> law X mu P -> law (Z + X) (Z + mu) P.
Proof.
move=> knownZ [meanX covX]; split; first by rewrite meanD knownZ meanX.
by rewrite covDl !covDr !(cov_knownl _ knownZ) (cov_knownr _ knownZ) !add0r.
Qed.

Lemma law_mean_known n (X : 'cV[W]_n) mu P : law X mu P -> known mu.
Proof. by case=> <- _; apply: mean_known. Qed.

End Moments.

(* ---- Knowing less and knowing more ---- *)

Section Tower.
Variables (R : realFieldType) (W : comAlgType R) (E : expectation W).

(* What C knows, D knows too. *)
Definition coarser (C D : conditioning E) : Prop := (forall f, C (D f) = C f) /\ (forall f, D (C f) = C f).

Lemma nothing_coarser (D : conditioning E) : coarser (nothing E) D.
Proof. by split=> f /=; rewrite ?expect_given // givenZ given1. Qed.

Variables (C D : conditioning E).
Hypothesis CD : coarser C D.

Lemma mean_mean m n (X : 'M[W]_(m, n)) : mean C (mean D X) = mean C X.
Proof. by apply/matrixP=> i j; rewrite !mxE CD.1. Qed.

Lemma known_finer m n (X : 'M[W]_(m, n)) : known C X -> known D X.
Proof. by move=> knownX; rewrite /known -knownX; apply/matrixP=> i j; rewrite !mxE CD.2. Qed.

(* The law of total covariance, given C. *)
Theorem total_covariance m n (X : 'cV[W]_m) (Y : 'cV[W]_n) :
  cov C X Y = mean C (cov D X Y) + cov C (mean D X) (mean D Y).
Proof.
have split_centre k (Z : 'cV[W]_k) : centre C Z = centre D Z + centre C (mean D Z).
  by rewrite /centre mean_mean addrA subrK.
have known_centre k (Z : 'cV[W]_k) : known D (centre C (mean D Z)).
  by apply: knownB; [apply: mean_known | apply: known_finer; apply: mean_known].
have cross k l (Z : 'cV[W]_k) (V : 'cV[W]_l) : mean C (centre D Z *m (centre C (mean D V))^T) = 0.
  have known_tr : known D (centre C (mean D V))^T by rewrite /known mean_tr known_centre.
  by rewrite -mean_mean (mean_mulr _ known_tr) mean_centre mul0mx mean0.
have cross_tr : mean C (centre C (mean D X) *m (centre D Y)^T) = 0.
  by rewrite -[LHS]trmxK -mean_tr trmx_mul trmxK cross trmx0.
rewrite {1}/cov (split_centre _ X) (split_centre _ Y) linearD /= mulmxDl !mulmxDr !meanD.
by rewrite cross cross_tr addr0 add0r -[mean C (centre D X *m _)]mean_mean.
Qed.

End Tower.
